//===- SymbolicExprText.cpp - Expressions from and to text ----------------===//

#include "prefill/Analysis/SymbolicExpr.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/Format.h"

using namespace prefill;
using Kind = Expr::Kind;

// Deeper nests in a dimension's name make it a mere name.
static constexpr unsigned maxDepth = 64;

//===----------------------------------------------------------------------===//
// Dimension names
//===----------------------------------------------------------------------===//

namespace {
/// Parser of `a + 2*b - 1`, as Optimum and dynamo name derived dimensions.
struct DimParser {
  ExprContext &ctx;
  llvm::StringRef text;
  unsigned depth = 0;

  static bool isName(char c) {
    return llvm::isAlnum(c) || c == '_' || c == '.' || c == '/' || c == ':';
  }
  void skip() { text = text.ltrim(); }
  bool eat(char c) {
    skip();
    return text.consume_front(llvm::StringRef(&c, 1));
  }
  ExprRef sum() {
    ExprRef left = term();
    while (left) {
      if (eat('+')) {
        ExprRef right = term();
        left = right ? ctx.add(left, right) : nullptr;
      } else if (eat('-')) {
        ExprRef right = term();
        left = right ? ctx.sub(left, right) : nullptr;
      } else {
        break;
      }
    }
    return left;
  }
  ExprRef term() {
    ExprRef left = factor();
    while (left && eat('*')) {
      ExprRef right = factor();
      left = right ? ctx.mul(left, right) : nullptr;
    }
    return left;
  }
  ExprRef factor() {
    skip();
    if (text.empty() || ++depth > maxDepth)
      return nullptr;
    if (eat('(')) {
      ExprRef inner = sum();
      return inner && eat(')') ? inner : nullptr;
    }
    llvm::StringRef token = text.take_while(isName);
    text = text.drop_front(token.size());
    if (token.empty())
      return nullptr;
    if (int64_t number; !token.getAsInteger(10, number))
      return ctx.getInt(number);
    if (llvm::isDigit(token[0]) || text.ltrim().starts_with("("))
      return nullptr; // A call or nonsense.
    return ctx.getSymbol(token);
  }
};
} // namespace

ExprRef ExprContext::parseDim(llvm::StringRef text) {
  DimParser parser{*this, text};
  ExprRef parsed = parser.sum();
  parser.skip();
  return parsed && parser.text.empty() ? parsed : getSymbol(text);
}

//===----------------------------------------------------------------------===//
// Printing
//===----------------------------------------------------------------------===//

void ExprContext::print(llvm::raw_ostream &os, ExprRef a, unsigned level) {
  if (level > 12) {
    os << "...";
    return;
  }
  auto list = [&](llvm::StringRef open, llvm::StringRef separator) {
    os << open;
    llvm::interleave(
        a->operands, os, [&](ExprRef x) { print(os, x, level + 1); },
        separator);
    os << ")";
  };
  switch (a->kind) {
  case Kind::Int:
    os << a->integer;
    return;
  case Kind::Bool:
    os << (a->integer ? "true" : "false");
    return;
  case Kind::Float:
    os << llvm::format("%g", a->number);
    return;
  case Kind::Symbol:
  case Kind::Index:
    os << a->name;
    return;
  case Kind::Deep:
    os << "...";
    return;
  case Kind::Sum: {
    bool first = true;
    for (auto [m, c] : llvm::zip_equal(a->operands, a->coefficients)) {
      if (!first || c < 0)
        os << (c < 0 ? (first ? "-" : " - ") : " + ");
      if (std::abs(c) != 1)
        os << std::abs(c) << "*";
      print(os, m, level + 1);
      first = false;
    }
    if (a->integer)
      os << (a->integer < 0 ? " - " : " + ") << std::abs(a->integer);
    return;
  }
  case Kind::Product:
    return list("(", "*");
  case Kind::FloorDiv:
    return list("(", " floordiv ");
  case Kind::Mod:
    return list("(", " mod ");
  case Kind::Min:
    return list("min(", ", ");
  case Kind::Max:
    return list("max(", ", ");
  case Kind::Ge0:
    return list("0 <= (", "");
  case Kind::Eq0:
    return list("0 == (", "");
  case Kind::And:
    return list("(", " and ");
  case Kind::Or:
    return list("(", " or ");
  case Kind::Not:
    return list("not (", "");
  case Kind::ToFloat:
    return list("float(", "");
  case Kind::Load:
    return list("load(", ", ");
  case Kind::Select:
    return list("select(", ", ");
  case Kind::Apply:
    os << a->name;
    return list("(", ", ");
  }
}

std::string ExprContext::str(ExprRef a) {
  std::string text;
  llvm::raw_string_ostream os(text);
  print(os, a, 0);
  return text;
}
