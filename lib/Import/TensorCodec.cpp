//===- TensorCodec.cpp - Tensors ------------------------------------------===//
//
// Part of prefill-opt, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
//===----------------------------------------------------------------------===//

#include "mlir/IR/AsmState.h"
#include "mlir/IR/DialectResourceBlobManager.h"
#include "prefill/Dialect/ONNX/WeightReader.h"
#include "prefill/Import/ProtoCodec.h"

using namespace mlir;
using namespace prefill;
using namespace prefill::onnx;
using ::onnx::TensorProto;

/// Up to this size tensors are ordinary elements attributes, readable in the
/// textual IR; larger ones refer to bytes that are kept elsewhere.
static constexpr int64_t kDenseBytes = 1024;

//===----------------------------------------------------------------------===//
// Elements <-> raw bytes
//===----------------------------------------------------------------------===//

/// The fields of a TensorProto that hold elements.
namespace {
enum class DataField { None, Raw, Floats, Int32s, Int64s, Doubles, UInt64s };
} // namespace

/// The field that elements of `type` are in when they are not in `raw_data`.
static DataField getTypedField(Type type) {
  if (auto complex = dyn_cast<ComplexType>(type))
    type = complex.getElementType();
  if (type.isF32())
    return DataField::Floats;
  if (type.isF64())
    return DataField::Doubles;
  if (type.isUnsignedInteger(32) || type.isUnsignedInteger(64))
    return DataField::UInt64s;
  return type.isInteger(64) ? DataField::Int64s : DataField::Int32s;
}

/// Copies numbers from or to a repeated field as the bytes they are.
template <typename T, typename Field>
static void getNumbers(const Field &field, std::string &bytes) {
  bytes.resize(field.size() * sizeof(T));
  for (auto [i, entry] : llvm::enumerate(field)) {
    T value = static_cast<T>(entry);
    memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
  }
}
template <typename T, typename Field>
static void setNumbers(ArrayRef<char> bytes, Field &field) {
  field.Reserve(bytes.size() / sizeof(T));
  for (size_t i = 0; i + sizeof(T) <= bytes.size(); i += sizeof(T)) {
    T value;
    memcpy(&value, bytes.data() + i, sizeof(T));
    field.Add(value);
  }
}

/// The bytes of elements that are in a typed field.
static std::string getTypedBytes(const TensorProto &proto, Type type) {
  std::string bytes;
  unsigned bits = getElementBits(type);
  switch (getTypedField(type)) {
  case DataField::Floats:
    getNumbers<float>(proto.float_data(), bytes);
    break;
  case DataField::Doubles:
    getNumbers<double>(proto.double_data(), bytes);
    break;
  case DataField::Int64s:
    getNumbers<int64_t>(proto.int64_data(), bytes);
    break;
  case DataField::UInt64s:
    if (bits == 32)
      getNumbers<uint32_t>(proto.uint64_data(), bytes);
    else
      getNumbers<uint64_t>(proto.uint64_data(), bytes);
    break;
  default:
    if (bits == 32) {
      getNumbers<int32_t>(proto.int32_data(), bytes);
    } else if (bits == 16) {
      getNumbers<uint16_t>(proto.int32_data(), bytes);
    } else if (bits == 6) {
      // One element an entry, but packed without gaps in raw bytes.
      bytes.resize((proto.int32_data_size() * 6 + 7) / 8);
      for (auto [i, entry] : llvm::enumerate(proto.int32_data()))
        for (unsigned b = 0; b < 6; ++b)
          bytes[(i * 6 + b) / 8] |= (entry >> b & 1) << (i * 6 + b) % 8;
    } else {
      // Elements of 2 and 4 bits are packed in entries as in raw bytes.
      getNumbers<uint8_t>(proto.int32_data(), bytes);
    }
  }
  return bytes;
}

/// Puts raw bytes into the typed field.
static void setTypedBytes(ArrayRef<char> bytes, Type type, int64_t count,
                          TensorProto &proto) {
  unsigned bits = getElementBits(type);
  auto integer = dyn_cast<IntegerType>(type);
  bool isSigned = integer && !integer.isUnsigned() && integer.getWidth() >= 8;
  switch (getTypedField(type)) {
  case DataField::Floats:
    setNumbers<float>(bytes, *proto.mutable_float_data());
    return;
  case DataField::Doubles:
    setNumbers<double>(bytes, *proto.mutable_double_data());
    return;
  case DataField::Int64s:
    setNumbers<int64_t>(bytes, *proto.mutable_int64_data());
    return;
  case DataField::UInt64s:
    if (bits == 32)
      setNumbers<uint32_t>(bytes, *proto.mutable_uint64_data());
    else
      setNumbers<uint64_t>(bytes, *proto.mutable_uint64_data());
    return;
  default:
    break;
  }
  auto &field = *proto.mutable_int32_data();
  if (bits == 32) {
    setNumbers<int32_t>(bytes, field);
  } else if (bits == 16) {
    isSigned ? setNumbers<int16_t>(bytes, field)
             : setNumbers<uint16_t>(bytes, field);
  } else if (bits == 6) {
    for (int64_t i = 0; i < count; ++i) {
      int32_t value = 0;
      for (unsigned b = 0; b < 6; ++b)
        value |= (bytes[(i * 6 + b) / 8] >> (i * 6 + b) % 8 & 1) << b;
      field.Add(value);
    }
  } else {
    isSigned ? setNumbers<int8_t>(bytes, field)
             : setNumbers<uint8_t>(bytes, field);
  }
}

/// An elements attribute for raw bytes: dense when they are few, otherwise a
/// reference to them. `keep` makes the owner of large data.
static Attribute
makeElements(RankedTensorType type, ArrayRef<char> bytes, StringRef name,
             llvm::function_ref<std::pair<ArrayRef<char>, BytesOwner>()> keep) {
  Type element = type.getElementType();
  unsigned bits = getElementBits(element);
  if (static_cast<int64_t>(bytes.size()) <= kDenseBytes && bits % 8 == 0) {
    if (!element.isInteger(1))
      return DenseElementsAttr::getFromRawBuffer(type, bytes);
    // A boolean may be any byte in a file.
    if (llvm::all_of(bytes, [](char c) { return c == 0 || c == 1; })) {
      SmallVector<bool> values(bytes.begin(), bytes.end());
      return DenseElementsAttr::get(type, values);
    }
  }
  auto [kept, owner] = keep();
  // The blob manager makes the key unique.
  std::string key = name.empty() ? "onnx" : name.str();
  return DenseResourceElementsAttr::get(
      type, key,
      AsmResourceBlob(
          kept, /*dataAlignment=*/1,
          [owner = std::move(owner)](void *, size_t, size_t) {},
          /*dataIsMutable=*/false));
}

//===----------------------------------------------------------------------===//
// Import
//===----------------------------------------------------------------------===//

static std::string toString(RankedTensorType type) {
  std::string text;
  llvm::raw_string_ostream(text) << type;
  return text;
}

/// The type of `proto`, or null with an error.
static RankedTensorType importTensorType(MLIRContext *context,
                                         const TensorProto &proto,
                                         std::string &error) {
  Type element = importElementType(context, proto.data_type());
  if (!element) {
    error = "has data type " + std::to_string(proto.data_type()) +
            ", which this version does not know";
    return {};
  }
  int64_t elements = 1;
  bool isEmpty = llvm::is_contained(proto.dims(), 0);
  for (int64_t size : proto.dims()) {
    if (size < 0) {
      error = "has a negative dimension (" + std::to_string(size) + ")";
      return {};
    }
    // Room for 128 bits an element, so that no later product can overflow.
    if (!isEmpty && (llvm::MulOverflow(elements, size, elements) ||
                     elements > std::numeric_limits<int64_t>::max() / 128)) {
      error = "has more elements than memory can hold";
      return {};
    }
  }
  // An empty tensor may have absurd sizes beside the zero.
  for (int64_t size : proto.dims())
    if (size > std::numeric_limits<int64_t>::max() / 128) {
      error = "has more elements than memory can hold";
      return {};
    }
  SmallVector<int64_t> shape(proto.dims().begin(), proto.dims().end());
  return RankedTensorType::get(shape, element);
}

/// Writes the canonical entries of external data.
static void setExternal(WeightAttr weight, TensorProto &proto) {
  auto add = [&](const char *key, std::string value) {
    auto *entry = proto.add_external_data();
    entry->set_key(key);
    entry->set_value(std::move(value));
  };
  add("location", weight.getFile().str());
  add("offset", std::to_string(weight.getOffset()));
  add("length", std::to_string(weight.getSize()));
  proto.set_data_location(TensorProto::EXTERNAL);
}

/// Reads the entries of external data. Null, with an error, when they make no
/// sense or `check` objects.
static WeightAttr importExternal(MLIRContext *context, const TensorProto &proto,
                                 RankedTensorType type, ExternalCheck check,
                                 std::string &error) {
  std::optional<int64_t> expected = getTensorBytes(type);
  if (!expected) {
    error = "has external data, but its elements have no fixed size";
    return {};
  }
  std::optional<StringRef> location;
  std::optional<int64_t> offset, length;
  for (const auto &entry : proto.external_data()) {
    StringRef key(entry.key());
    std::optional<int64_t> *number = key == "offset"   ? &offset
                                     : key == "length" ? &length
                                                       : nullptr;
    bool twice = key == "location" ? location.has_value()
                                   : number && number->has_value();
    if (twice) {
      error = "has external data with two entries '" + entry.key() + "'";
      return {};
    }
    if (key == "location") {
      location = entry.value();
    } else if (number) {
      int64_t value;
      if (StringRef(entry.value()).getAsInteger(10, value) || value < 0) {
        error = "has external data whose " + entry.key() +
                " is not a number: '" + entry.value() + "'";
        return {};
      }
      *number = value;
    }
  }
  if (!location) {
    error = "has external data without a location";
    return {};
  }
  if (length && *length != *expected) {
    error = "has " + std::to_string(*length) + " bytes of external data, but " +
            toString(type) + " needs " + std::to_string(*expected);
    return {};
  }
  error = check(*location, offset.value_or(0), *expected);
  if (!error.empty())
    return {};
  return WeightAttr::get(context, StringAttr::get(context, *location),
                         offset.value_or(0), *expected);
}

/// Wraps `value` if `proto`, from which everything that `value` and `type` tell
/// has been removed, still says something.
static ImportedTensor wrap(MLIRContext *context, Attribute value,
                           RankedTensorType type, bool typed,
                           const TensorProto &proto, bool nameElsewhere) {
  bool bare = !typed && proto.ByteSizeLong() == 0 &&
              (nameElsewhere || !isa<WeightAttr>(value));
  if (!bare)
    value =
        TensorAttr::get(context, value, type, typed, toBytes(context, proto));
  return {value, type};
}

static void clearData(TensorProto &proto) {
  proto.clear_raw_data();
  proto.clear_float_data();
  proto.clear_int32_data();
  proto.clear_int64_data();
  proto.clear_double_data();
  proto.clear_uint64_data();
  proto.clear_string_data();
}

ImportedTensor prefill::importTensor(MLIRContext *context, TensorProto &proto,
                                     std::optional<ArrayRef<char>> raw,
                                     BytesOwner owner, bool nameElsewhere,
                                     ExternalCheck check, std::string &error) {
  RankedTensorType type = importTensorType(context, proto, error);
  if (!type)
    return {};
  Type element = type.getElementType();
  std::string name = proto.name();
  proto.clear_dims();
  proto.clear_data_type();
  if (nameElsewhere)
    proto.clear_name();

  // Which field the elements are in, and that there is only one.
  bool hasRaw = raw || proto.has_raw_data();
  int fields = hasRaw + (proto.float_data_size() > 0) +
               (proto.int32_data_size() > 0) + (proto.int64_data_size() > 0) +
               (proto.double_data_size() > 0) + (proto.uint64_data_size() > 0) +
               (proto.string_data_size() > 0);
  bool isExternal = proto.data_location() == TensorProto::EXTERNAL;
  if (fields + isExternal > 1) {
    error = "has its elements in more than one place";
    return {};
  }

  if (isExternal) {
    WeightAttr weight = importExternal(context, proto, type, check, error);
    if (!weight)
      return {};
    TensorProto canonical, written;
    setExternal(weight, canonical);
    *written.mutable_external_data() = proto.external_data();
    written.set_data_location(TensorProto::EXTERNAL);
    if (sameBytes(canonical, written)) {
      proto.clear_external_data();
      proto.clear_data_location();
    }
    return wrap(context, weight, type, /*typed=*/false, proto, nameElsewhere);
  }

  auto wrongSize = [&](int64_t has, int64_t needs, const char *what) {
    error = "has " + std::to_string(has) + " " + what + ", but " +
            toString(type) + " needs " + std::to_string(needs);
    return ImportedTensor();
  };
  if (isa<StringType>(element)) {
    int64_t count = type.getNumElements();
    if (hasRaw || proto.string_data_size() != count)
      return wrongSize(proto.string_data_size(), count, "strings");
    SmallVector<StringRef> strings(proto.string_data().begin(),
                                   proto.string_data().end());
    Attribute value = DenseStringElementsAttr::get(type, strings);
    proto.clear_string_data();
    return wrap(context, value, type, /*typed=*/false, proto, nameElsewhere);
  }

  std::optional<int64_t> size = getTensorBytes(type);
  if (!size) {
    error = "is larger than any file";
    return ImportedTensor();
  }
  int64_t expected = *size;
  if (hasRaw) {
    ArrayRef<char> bytes =
        raw ? *raw
            : ArrayRef<char>(proto.raw_data().data(), proto.raw_data().size());
    if (static_cast<int64_t>(bytes.size()) != expected)
      return wrongSize(bytes.size(), expected, "bytes");
    Attribute value = makeElements(type, bytes, name, [&] {
      if (raw)
        return std::pair(*raw, owner);
      // Moved, not copied.
      std::shared_ptr<std::string> moved(proto.release_raw_data());
      return std::pair(ArrayRef<char>(moved->data(), moved->size()),
                       BytesOwner(moved));
    });
    proto.clear_raw_data();
    return wrap(context, value, type, /*typed=*/false, proto, nameElsewhere);
  }

  auto bytes = std::make_shared<std::string>(getTypedBytes(proto, element));
  if (static_cast<int64_t>(bytes->size()) != expected)
    return wrongSize(bytes->size(), expected, "bytes");
  // Entries of the wrong field, or ones that are not what they stand for (a
  // negative number for an unsigned byte), only come back as they were.
  TensorProto data;
  data.mutable_float_data()->Swap(proto.mutable_float_data());
  data.mutable_int32_data()->Swap(proto.mutable_int32_data());
  data.mutable_int64_data()->Swap(proto.mutable_int64_data());
  data.mutable_double_data()->Swap(proto.mutable_double_data());
  data.mutable_uint64_data()->Swap(proto.mutable_uint64_data());
  data.mutable_string_data()->Swap(proto.mutable_string_data());
  TensorProto back;
  setTypedBytes({bytes->data(), bytes->size()}, element, type.getNumElements(),
                back);
  if (!sameBytes(data, back))
    proto.MergeFrom(data);
  Attribute value =
      makeElements(type, {bytes->data(), bytes->size()}, name, [&] {
        return std::pair(ArrayRef<char>(bytes->data(), bytes->size()),
                         BytesOwner(bytes));
      });
  return wrap(context, value, type, /*typed=*/true, proto, nameElsewhere);
}

//===----------------------------------------------------------------------===//
// Export
//===----------------------------------------------------------------------===//

/// Makes external data entries that say more than `weight` does say what
/// `weight` says.
static void updateExternal(WeightAttr weight, TensorProto &proto) {
  std::string location = weight.getFile().str();
  std::string offset = std::to_string(weight.getOffset());
  std::string length = std::to_string(weight.getSize());
  bool hasOffset = false;
  for (auto &entry : *proto.mutable_external_data()) {
    int64_t number;
    if (entry.key() == "location" && entry.value() != location)
      entry.set_value(location);
    hasOffset |= entry.key() == "offset";
    bool isNumber = !StringRef(entry.value()).getAsInteger(10, number);
    if (entry.key() == "offset" && !(isNumber && number == weight.getOffset()))
      entry.set_value(offset);
    if (entry.key() == "length" && !(isNumber && number == weight.getSize()))
      entry.set_value(length);
  }
  if (!hasOffset && weight.getOffset() != 0) {
    auto *entry = proto.add_external_data();
    entry->set_key("offset");
    entry->set_value(offset);
  }
}

/// The raw bytes of elements, in `storage` if they are not there as such. False
/// when there are none to be had.
static bool getRawBytes(Attribute value, ArrayRef<char> &bytes,
                        std::string &storage) {
  if (auto resource = dyn_cast<DenseResourceElementsAttr>(value)) {
    AsmResourceBlob *blob = resource.getRawHandle().getBlob();
    if (!blob)
      return false;
    bytes = blob->getData();
    return true;
  }
  auto dense = dyn_cast<DenseElementsAttr>(value);
  if (!dense)
    return false;
  Type element = dense.getElementType();
  unsigned bits = getElementBits(element);
  int64_t count = dense.getNumElements();
  if (bits % 8 == 0 && !element.isInteger(1) && !dense.isSplat()) {
    bytes = dense.getRawData();
    return true;
  }
  if (element.isInteger(1)) {
    for (bool one : dense.getValues<bool>())
      storage.push_back(one);
  } else if (bits % 8 == 0) {
    ArrayRef<char> one = dense.getRawData();
    storage.reserve(one.size() * count);
    for (int64_t i = 0; i < count; ++i)
      storage.append(one.begin(), one.end());
  } else if (bits != 0) {
    // Packed without gaps, lowest bits first.
    storage.resize((count * bits + 7) / 8);
    int64_t at = 0;
    auto put = [&](const APInt &entry) {
      for (unsigned b = 0; b < bits; ++b, ++at)
        storage[at / 8] |= entry[b] << at % 8;
    };
    if (isa<FloatType>(element))
      for (const APFloat &entry : dense.getValues<APFloat>())
        put(entry.bitcastToAPInt());
    else
      for (const APInt &entry : dense.getValues<APInt>())
        put(entry);
  } else {
    return false;
  }
  bytes = {storage.data(), storage.size()};
  return true;
}

bool prefill::exportTensor(Attribute value, Type type, TensorProto &proto,
                           ArrayRef<char> *lent, std::string &error) {
  bool typed = false;
  if (auto tensor = dyn_cast<TensorAttr>(value)) {
    if (!proto.ParseFromString(tensor.getExtra().str())) {
      error = "has damaged extra bytes";
      return false;
    }
    type = tensor.getType();
    typed = tensor.getTyped();
    value = tensor.getValue();
  }
  if (auto elements = dyn_cast<ElementsAttr>(value); elements && !type)
    type = elements.getShapedType();
  auto ranked = dyn_cast_or_null<RankedTensorType>(type);
  Type element = getElementType(ranked);
  int32_t dataType = exportElementType(element);
  if (!ranked || !ranked.hasStaticShape() ||
      dataType == TensorProto::UNDEFINED) {
    error = "has no type that an ONNX tensor can have";
    return false;
  }
  for (int64_t size : ranked.getShape())
    proto.add_dims(size);
  proto.set_data_type(dataType);

  if (auto weight = dyn_cast<WeightAttr>(value)) {
    if (proto.external_data_size() == 0)
      setExternal(weight, proto);
    else
      updateExternal(weight, proto);
    return true;
  }
  if (auto strings = dyn_cast<DenseStringElementsAttr>(value)) {
    for (StringRef entry : strings.getValues<StringRef>())
      proto.add_string_data(entry.str());
    return true;
  }
  ArrayRef<char> bytes;
  std::string storage;
  std::optional<int64_t> expected = getTensorBytes(ranked);
  if (!getRawBytes(value, bytes, storage) || !expected ||
      static_cast<int64_t>(bytes.size()) != *expected) {
    error = "has elements that cannot be written as an ONNX tensor";
    return false;
  }
  if (typed) {
    TensorProto data;
    data.CopyFrom(proto);
    clearData(data);
    // Unusual entries are in the extra bytes.
    if (sameBytes(data, proto))
      setTypedBytes(bytes, element, ranked.getNumElements(), proto);
  } else if (lent && storage.empty() &&
             static_cast<int64_t>(bytes.size()) > kDenseBytes) {
    *lent = bytes;
  } else if (!storage.empty()) {
    proto.set_raw_data(std::move(storage));
  } else {
    proto.set_raw_data(bytes.data(), bytes.size());
  }
  return true;
}
