//===- ImportFuzzer.cpp - Any bytes into the importer ---------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//
//
// Bytes are either refused with one line, or they are a model that comes back
// equal: from the imported IR, from that IR printed and parsed, and from the
// exported model imported once more.
//
//===----------------------------------------------------------------------===//

#include "mlir/IR/Verifier.h"
#include "mlir/Parser/Parser.h"
#include "onnx/onnx-ml.pb.h"
#include "prefill/Dialect/ONNX/ONNX.h"
#include "prefill/Export/ONNXExport.h"
#include "prefill/Import/ONNXImport.h"
#include "prefill/Import/ProtoCodec.h"
#include <cstdio>
#include <cstdlib>
#include <google/protobuf/stubs/logging.h>
#include <random>

using namespace mlir;
using namespace prefill;

// libMLIR is not instrumented, so containers and allocators that cross the
// border look wrong.
extern "C" const char *__asan_default_options() {
  return "detect_container_overflow=0:detect_leaks=0:"
         "allocator_may_return_null=1:allow_user_poisoning=0";
}

static void fail(const char *what, const std::string &detail = "") {
  fprintf(stderr, "import fuzzer: %s: %s\n", what, detail.c_str());
  abort();
}

static OwningOpRef<ModuleOp> import(StringRef bytes, MLIRContext &context,
                                    std::string &error) {
  ImportOptions options;
  options.checkExternalData = false;
  return importONNX(llvm::MemoryBuffer::getMemBuffer(
                        bytes, "", /*RequiresNullTerminator=*/false),
                    "fuzz", "", &context, options, error);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  google::protobuf::LogSilencer silencer;
  StringRef bytes(reinterpret_cast<const char *>(data), size);
  MLIRContext context(MLIRContext::Threading::DISABLED);
  std::string error;
  OwningOpRef<ModuleOp> module = import(bytes, context, error);
  if (!module) {
    if (!StringRef(error).starts_with("'fuzz': ") ||
        error.find('\n') != std::string::npos)
      fail("an error that is not one clear line", error);
    return 0;
  }
  if (failed(verify(*module)))
    fail("the imported module does not verify");
  ::onnx::ModelProto model;
  if (!model.ParseFromArray(data, size))
    fail("imported what protobuf refuses");
  sortNodes(model);
  std::string wanted = model.SerializeAsString(), exported;
  if (!exportONNX(*module, exported, error))
    fail("the imported module cannot be exported", error);
  if (exported != wanted)
    fail("the exported model is another one");

  MLIRContext second(MLIRContext::Threading::DISABLED);
  OwningOpRef<ModuleOp> again = import(exported, second, error);
  if (!again || !exportONNX(*again, exported, error) || exported != wanted)
    fail("the exported model does not come back", error);

  if (size < 4096) {
    std::string text;
    llvm::raw_string_ostream os(text);
    module->print(os);
    MLIRContext third(MLIRContext::Threading::DISABLED);
    third.loadDialect<prefill::onnx::ONNXDialect>();
    OwningOpRef<ModuleOp> parsed = parseSourceString<ModuleOp>(text, &third);
    if (!parsed || !exportONNX(*parsed, exported, error) || exported != wanted)
      fail("the printed module does not come back", text);
  }
  return 0;
}

//===----------------------------------------------------------------------===//
// Mutation that knows protobuf
//===----------------------------------------------------------------------===//

extern "C" size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t maxSize);

namespace {
/// Changes one field somewhere in a message. Changed bytes alone mostly break
/// the lengths around them, and so never get past the parser.
class Mutator {
public:
  explicit Mutator(unsigned seed) : random(seed) {}

  void mutate(google::protobuf::Message &message) {
    const auto *descriptor = message.GetDescriptor();
    const auto *reflection = message.GetReflection();
    const auto *field = descriptor->field(pick(descriptor->field_count()));
    // Go down mostly: there is more below.
    std::vector<const google::protobuf::FieldDescriptor *> present;
    reflection->ListFields(message, &present);
    if (!present.empty() && pick(4) != 0)
      field = present[pick(present.size())];
    using Field = google::protobuf::FieldDescriptor;
    if (field->cpp_type() == Field::CPPTYPE_MESSAGE) {
      if (!field->is_repeated()) {
        if (reflection->HasField(message, field) && pick(16) == 0)
          return reflection->ClearField(&message, field);
        return mutate(*reflection->MutableMessage(&message, field));
      }
      int size = reflection->FieldSize(message, field);
      switch (size == 0 ? 0 : pick(8)) {
      case 0:
        return mutate(*reflection->AddMessage(&message, field));
      case 1:
        return reflection->RemoveLast(&message, field);
      case 2:
        return reflection->SwapElements(&message, field, pick(size),
                                        pick(size));
      case 3: {
        int from = pick(size);
        return reflection->AddMessage(&message, field)
            ->CopyFrom(reflection->GetRepeatedMessage(message, field, from));
      }
      default:
        return mutate(
            *reflection->MutableRepeatedMessage(&message, field, pick(size)));
      }
    }
    if (pick(8) == 0)
      return reflection->ClearField(&message, field);
    bool repeated = field->is_repeated();
    switch (field->cpp_type()) {
    case Field::CPPTYPE_STRING:
      return repeated ? reflection->AddString(&message, field, name())
                      : reflection->SetString(&message, field, name());
    case Field::CPPTYPE_INT64:
      return repeated ? reflection->AddInt64(&message, field, number())
                      : reflection->SetInt64(&message, field, number());
    case Field::CPPTYPE_INT32:
      return repeated ? reflection->AddInt32(&message, field, number())
                      : reflection->SetInt32(&message, field, number());
    case Field::CPPTYPE_UINT64:
      return repeated ? reflection->AddUInt64(&message, field, number())
                      : reflection->SetUInt64(&message, field, number());
    case Field::CPPTYPE_FLOAT:
      return repeated ? reflection->AddFloat(&message, field, real())
                      : reflection->SetFloat(&message, field, real());
    case Field::CPPTYPE_DOUBLE:
      return repeated ? reflection->AddDouble(&message, field, real())
                      : reflection->SetDouble(&message, field, real());
    case Field::CPPTYPE_ENUM:
      return reflection->SetEnumValue(&message, field, pick(18));
    default:
      return;
    }
  }

private:
  unsigned pick(unsigned count) { return random() % count; }
  int64_t number() {
    static const int64_t numbers[] = {-1, 0, 1,  2,  3,         4,
                                      5,  7, 16, 64, INT64_MAX, INT64_MIN};
    return pick(2) ? numbers[pick(std::size(numbers))] : pick(30);
  }
  float real() {
    uint32_t bits = pick(2) ? random() : 0x7f800000 + pick(4);
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
  }
  std::string name() {
    // Few, so that they meet; some that mean something in places.
    static const char *const names[] = {
        "",  "x", "y",       "z",      "w",        "a\nb",   "If",
        "0", "8", "ai.onnx", "offset", "location", "length", "../x"};
    return names[pick(std::size(names))];
  }

  std::minstd_rand random;
};
} // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size,
                                          size_t maxSize, unsigned seed) {
  google::protobuf::LogSilencer silencer;
  ::onnx::ModelProto model;
  if (seed % 4 == 0 || !model.ParseFromArray(data, size))
    return LLVMFuzzerMutate(data, size, maxSize);
  Mutator mutator(seed);
  for (unsigned i = 0; i <= seed / 4 % 4; ++i)
    mutator.mutate(model);
  std::string bytes = model.SerializeAsString();
  if (bytes.size() > maxSize)
    return LLVMFuzzerMutate(data, size, maxSize);
  memcpy(data, bytes.data(), bytes.size());
  return bytes.size();
}
