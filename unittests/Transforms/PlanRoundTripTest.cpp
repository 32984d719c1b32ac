//===- PlanRoundTripTest.cpp - Every pattern through every form of it -----===//
//
// -sparsify=SPEC -> plan -> ops -> text -> ops -> plan -> manifest JSON ->
// configuration file -> plan: nothing is lost on the way.
//
//===----------------------------------------------------------------------===//

#include "mlir/Dialect/Func/IR/FuncOps.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/Verifier.h"
#include "mlir/Parser/Parser.h"
#include "prefill/Dialect/Prefill/Prefill.h"
#include "prefill/Transforms/Patterns.h"
#include "prefill/Transforms/PlanIR.h"
#include "prefill/Transforms/SparsityConfig.h"
#include "llvm/Support/raw_ostream.h"
#include "gtest/gtest.h"

using namespace mlir;
using namespace prefill;

static HeadPlan planOf(const std::string &spec) {
  std::string error;
  std::optional<SparsityConfig> config = parseSparsity(spec, error);
  EXPECT_TRUE(config) << error;
  return config ? config->plan(0, 0) : HeadPlan();
}

/// `plan` written as ops, printed, parsed and read back.
static std::optional<HeadPlan> throughIR(const HeadPlan &plan) {
  MLIRContext context;
  context.loadDialect<PrefillDialect, func::FuncDialect>();
  OpBuilder builder(&context);
  Location loc = builder.getUnknownLoc();
  OwningOpRef<ModuleOp> module = ModuleOp::create(loc);
  builder.setInsertionPointToEnd(module->getBody());
  Type type = RankedTensorType::get({1, 2, ShapedType::kDynamic, 64},
                                    builder.getF32Type());
  auto function = func::FuncOp::create(
      builder, loc, "f",
      builder.getFunctionType({type, type}, {SparseIndexType::get(&context)}));
  Block *body = function.addEntryBlock();
  builder.setInsertionPointToEnd(body);
  Value index =
      buildIndex(builder, loc, body->getArgument(0), body->getArgument(1),
                 body->getArgument(1), plan, body->getArgument(1));
  func::ReturnOp::create(builder, loc, index);
  EXPECT_TRUE(succeeded(verify(*module)));
  std::string text;
  llvm::raw_string_ostream(text) << *module;
  OwningOpRef<ModuleOp> again = parseSourceString<ModuleOp>(text, &context);
  EXPECT_TRUE(again) << text;
  if (!again)
    return std::nullopt;
  auto ret = cast<func::ReturnOp>((*again->getOps<func::FuncOp>().begin())
                                      .getBody()
                                      .front()
                                      .getTerminator());
  return readIndex(ret.getOperand(0));
}

/// `plan` as the manifest's JSON, read as a configuration file.
static HeadPlan throughJSON(const HeadPlan &plan) {
  std::string text, error;
  llvm::raw_string_ostream os(text);
  os << "{\"layers\": [{\"heads\": {\"0\": "
     << llvm::json::Value(planToJSON(plan)) << "}}]}";
  std::optional<SparsityConfig> config = parseSparsityJSON(text, "file", error);
  EXPECT_TRUE(config) << error << text;
  return config ? config->plan(0, 0) : HeadPlan();
}

static void expectRoundTrip(const std::string &spec) {
  SCOPED_TRACE(spec);
  HeadPlan plan = planOf(spec);
  std::optional<HeadPlan> read = throughIR(plan);
  ASSERT_TRUE(read);
  EXPECT_EQ(*read, plan);
  EXPECT_EQ(throughJSON(plan), plan);
}

/// A value of `option` that is not its default.
static std::string another(const PatternOption &option) {
  switch (option.unit) {
  case OptionUnit::Share:
  case OptionUnit::Fraction:
    return "0.375";
  case OptionUnit::Bits:
    return "4";
  case OptionUnit::Switch:
    return option.value ? "0" : "1";
  case OptionUnit::PowerOfTwo:
    return "32";
  default:
    return "7";
  }
}

TEST(PlanRoundTrip, EveryPatternAndOption) {
  for (const PatternInfo &info : patternTable()) {
    std::string name = info.name.str();
    expectRoundTrip(name);
    // Each option alone, then all that go together.
    for (int budget : {1, 2}) {
      std::string all = name;
      for (const PatternOption &option : info.options) {
        std::string text = option.name.str() + "=" + another(option);
        expectRoundTrip(name + ":" + text);
        EXPECT_FALSE(planOf(name + ":" + text) == planOf(name)) << text;
        if (!option.alias.empty()) {
          EXPECT_EQ(
              planOf(name + ":" + option.alias.str() + "=" + another(option)),
              planOf(name + ":" + text));
        }
        if (!option.budget || option.budget == budget)
          all += (all == name ? ":" : ",") + text;
      }
      expectRoundTrip(all);
    }
  }
  expectRoundTrip("vertical-slash:vertical=0,slash=0");
  expectRoundTrip("block-topk:top-k=0");
  expectRoundTrip("sale:init=0,local=0");
}

TEST(PlanRoundTrip, NamesInFiles) {
  std::string error;
  for (const PatternInfo &info : patternTable())
    for (llvm::StringRef type : {info.name, info.alias, info.type}) {
      if (type.empty())
        continue;
      auto config = parseSparsityJSON(
          R"({"layers": [{"heads": {"0": {"type": ")" + type.str() + "\"}}}]}",
          "file", error);
      ASSERT_TRUE(config) << error;
      EXPECT_EQ(config->plan(0, 0), defaultPlan(info)) << type.str();
    }
}

TEST(PlanRoundTrip, DecimalNumbersStayShort) {
  HeadPlan plan = planOf("sale:top-p=0.95");
  llvm::json::Object object = planToJSON(plan);
  EXPECT_EQ(object.getNumber("top_p"), 0.95);
  EXPECT_FALSE(object.get("tau"));
}
