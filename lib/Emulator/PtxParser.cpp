//===- PtxParser.cpp - PTX statements of inline assembly ------------------===//

#include "PtxParser.h"
#include "llvm/ADT/StringExtras.h"

using namespace llvm;
using namespace prefill::emu;

namespace {
class Parser {
public:
  explicit Parser(StringRef text) : text(text), rest(text) {}
  Expected<std::vector<PtxStatement>> run();

private:
  void skip();
  bool eat(StringRef token) {
    skip();
    return rest.consume_front(token);
  }
  StringRef word();
  bool operand(PtxOperand &result);
  bool primary(PtxOperand &result);
  bool statement(PtxStatement &result);
  Error fail() {
    return createStringError("the emulator cannot read this PTX: '" +
                             rest.take_front(60) + "' in '" +
                             text.take_front(400) + "'");
  }

  StringRef text, rest;
};
} // namespace

void Parser::skip() {
  while (true) {
    rest = rest.ltrim();
    if (rest.starts_with("//"))
      rest = rest.drop_front(std::min(rest.find('\n'), rest.size()));
    else if (rest.starts_with("/*"))
      rest = rest.drop_front(std::min(rest.find("*/") + 2, rest.size()));
    else
      return;
  }
}

static bool isWordChar(char c) { return isAlnum(c) || c == '_' || c == '%'; }

StringRef Parser::word() {
  skip();
  StringRef result = rest.take_while(isWordChar);
  rest = rest.drop_front(result.size());
  return result;
}

bool Parser::primary(PtxOperand &result) {
  skip();
  if (eat("{")) {
    result.kind = PtxOperand::Vector;
    if (eat("}"))
      return true;
    do {
      if (!operand(result.parts.emplace_back()))
        return false;
    } while (eat(","));
    return eat("}");
  }
  if (eat("[")) {
    result.kind = PtxOperand::Memory;
    if (!primary(result.parts.emplace_back()))
      return false;
    if (eat("+")) {
      PtxOperand offset;
      if (!primary(offset) || offset.kind != PtxOperand::Integer)
        return false;
      result.number = offset.number;
    }
    while (eat(","))
      if (!operand(result.parts.emplace_back()))
        return false;
    return eat("]");
  }
  if (rest.starts_with("$")) {
    rest = rest.drop_front();
    bool braces = rest.consume_front("{");
    unsigned number;
    if (rest.consumeInteger(10, number))
      return false;
    if (braces)
      rest = rest.drop_front(std::min(rest.find('}') + 1, rest.size()));
    result.kind = PtxOperand::Argument;
    result.number = number;
    return true;
  }
  bool minus = eat("-");
  StringRef name = word();
  if (name.empty())
    return false;
  if (name.starts_with_insensitive("0f") && name.size() == 10) {
    uint32_t bits;
    if (name.drop_front(2).getAsInteger(16, bits))
      return false;
    result.kind = PtxOperand::Float;
    result.number = bits;
    return true;
  }
  if (isDigit(name.front())) {
    uint64_t value;
    name.consume_back("U");
    if (name.getAsInteger(0, value))
      return false;
    result.kind = PtxOperand::Integer;
    result.number = minus ? -int64_t(value) : int64_t(value);
    return true;
  }
  result.kind = name == "_" ? PtxOperand::Sink : PtxOperand::Register;
  result.name = name.str();
  // Special registers have dots: %tid.x
  while (rest.starts_with(".") && name.starts_with("%")) {
    rest = rest.drop_front();
    result.name += "." + word().str();
  }
  return !minus;
}

bool Parser::operand(PtxOperand &result) {
  if (eat("!")) {
    result.negated = true;
    return primary(result);
  }
  if (!primary(result))
    return false;
  if (eat("|")) {
    PtxOperand first = std::move(result);
    result = PtxOperand();
    result.kind = PtxOperand::Pair;
    result.parts.push_back(std::move(first));
    return primary(result.parts.emplace_back());
  }
  return true;
}

bool Parser::statement(PtxStatement &result) {
  if (eat(".reg")) {
    result.kind = PtxStatement::Declaration;
    if (!eat("."))
      return false;
    result.opcode = word().str();
    do {
      StringRef name = word();
      if (name.empty())
        return false;
      // %r<4>: r0 to r3
      if (eat("<")) {
        unsigned count;
        if (rest.consumeInteger(10, count) || !eat(">"))
          return false;
        for (unsigned i = 0; i < count; ++i)
          result.declared.push_back((name + Twine(i)).str());
      } else {
        result.declared.push_back(name.str());
      }
    } while (eat(","));
    return eat(";");
  }
  if (eat("@")) {
    result.guarded = true;
    result.guard.negated = eat("!");
    if (!primary(result.guard))
      return false;
  }
  StringRef name = word();
  if (name.empty())
    return false;
  skip();
  if (!result.guarded && rest.starts_with(":") && !rest.starts_with("::")) {
    rest = rest.drop_front();
    result.kind = PtxStatement::Label;
    result.opcode = name.str();
    return true;
  }
  // The mnemonic: letters, digits, dots, and '::' as in shared::cta.
  StringRef tail = rest.take_while(
      [](char c) { return isAlnum(c) || c == '_' || c == '.' || c == ':'; });
  rest = rest.drop_front(tail.size());
  result.opcode = (name + tail).str();
  SmallVector<StringRef, 8> parts;
  StringRef(result.opcode).split(parts, '.');
  for (StringRef part : parts)
    result.parts.push_back(part.str());
  if (eat(";"))
    return true;
  do {
    if (!operand(result.operands.emplace_back()))
      return false;
  } while (eat(","));
  skip();
  return eat(";") || rest.empty();
}

Expected<std::vector<PtxStatement>> Parser::run() {
  std::vector<PtxStatement> statements;
  while (true) {
    skip();
    if (rest.empty())
      return statements;
    // Blocks open a scope; names in one assembly are distinct anyhow.
    if (eat("{") || eat("}") || eat(";"))
      continue;
    if (!statement(statements.emplace_back()))
      return fail();
  }
}

Expected<std::vector<PtxStatement>> prefill::emu::parsePtx(StringRef text) {
  return Parser(text).run();
}
