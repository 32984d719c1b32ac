//===- Graphs.h - Graphs in text form, for tests of analyses --------------===//
#ifndef PREFILL_UNITTESTS_ANALYSIS_GRAPHS_H
#define PREFILL_UNITTESTS_ANALYSIS_GRAPHS_H

#include "mlir/Parser/Parser.h"
#include "prefill/Analysis/SymbolicAnalysis.h"
#include "prefill/Dialect/ONNX/ONNX.h"
#include "prefill/Dialect/Prefill/Prefill.h"

#include "gtest/gtest.h"

/// A graph and its analysis. `u` abbreviates !onnx.unknown in bodies.
struct Graphs : ::testing::Test {
  Graphs() {
    context.loadDialect<prefill::onnx::ONNXDialect, prefill::PrefillDialect>();
  }

  /// Loads `body` (onnx.nodes, each with output_names) as the main graph of
  /// opset 18.
  void load(llvm::StringRef arguments, llvm::StringRef inputs,
            llvm::StringRef body) {
    std::string text =
        ("!u = !onnx.unknown\n"
         "module attributes {onnx.opset_imports = [#onnx.opset<\"\", 18>]} {\n"
         "onnx.graph @main(" +
         arguments + ") attributes {inputs = [" + inputs + "]} {\n" + body +
         "\nonnx.return {output_names = []}\n}}")
            .str();
    module = mlir::parseSourceString<mlir::ModuleOp>(text, &context);
    ASSERT_TRUE(module) << text;
    analysis = std::make_unique<prefill::SymbolicAnalysis>(
        prefill::onnx::getMainGraph(*module));
  }

  mlir::Value value(llvm::StringRef name) {
    mlir::Value found;
    auto graph = prefill::onnx::getMainGraph(*module);
    for (mlir::Value argument : graph.getBody().front().getArguments())
      if (prefill::onnx::getValueName(argument) == name)
        found = argument;
    graph.walk([&](mlir::Operation *op) {
      for (mlir::Value result : op->getResults())
        if (prefill::onnx::getValueName(result) == name)
          found = result;
    });
    EXPECT_TRUE(found) << name.str();
    return found;
  }

  /// "[b, 4, s]", or "unranked".
  std::string shape(llvm::StringRef name) {
    const prefill::TensorFacts &f = analysis->facts(value(name));
    if (!f.ranked)
      return "unranked";
    std::string text = "[";
    for (prefill::ExprRef e : f.shape) {
      prefill::ExprRef known = analysis->expressions().resolve(e);
      text += text.size() > 1 ? ", " : "";
      text +=
          known->is(prefill::Expr::Kind::Symbol) && known->name.contains(' ')
              ? "?"
              : analysis->expressions().str(known);
    }
    return text + "]";
  }

  /// The element at indices x0, x1, ...
  std::string element(llvm::StringRef name) {
    mlir::Value v = value(name);
    return analysis->expressions().str(
        analysis->element(v, analysis->indexVariables(v, "x")));
  }

  mlir::MLIRContext context;
  mlir::OwningOpRef<mlir::ModuleOp> module;
  std::unique_ptr<prefill::SymbolicAnalysis> analysis;
};

#endif
