//===- SymbolicExprTest.cpp - Expressions and proofs ----------------------===//

#include "prefill/Analysis/SymbolicExpr.h"

#include "gtest/gtest.h"

using namespace prefill;
using Kind = Expr::Kind;

namespace {

struct SymbolicExpr : ::testing::Test {
  ExprContext ctx;
  ExprRef s = ctx.getSymbol("s"), p = ctx.getSymbol("p"),
          b = ctx.getSymbol("b");
  ExprRef num(int64_t v) { return ctx.getInt(v); }
};

TEST_F(SymbolicExpr, SumsAreUnique) {
  ExprRef one = ctx.add(ctx.add(s, p), num(3));
  ExprRef two = ctx.add(num(3), ctx.add(p, s));
  EXPECT_EQ(one, two);
  EXPECT_EQ(ctx.sub(one, two), num(0));
  EXPECT_EQ(ctx.mul(ctx.add(s, p), ctx.add(s, p)),
            ctx.add(ctx.add(ctx.mul(s, s), ctx.scale(ctx.mul(s, p), 2)),
                    ctx.mul(p, p)));
}

TEST_F(SymbolicExpr, DimensionNames) {
  EXPECT_EQ(ctx.parseDim("p + s"), ctx.add(p, s));
  EXPECT_EQ(ctx.parseDim("2*(p+ 1) - s"),
            ctx.sub(ctx.scale(ctx.add(p, num(1)), 2), s));
  EXPECT_EQ(ctx.parseDim("12"), num(12));
  // Not expressions: symbols of their own.
  for (const char *name : {"Min(256,s)", "unk__7 +", "a b", "2x", "("})
    EXPECT_TRUE(ctx.parseDim(name)->is(Kind::Symbol)) << name;
  EXPECT_NE(ctx.parseDim("Min(256,s)"), s);
  std::string deep(5000, '(');
  EXPECT_TRUE(ctx.parseDim(deep)->is(Kind::Symbol));
}

TEST_F(SymbolicExpr, Division) {
  EXPECT_EQ(ctx.exactDiv(ctx.scale(ctx.mul(b, s), 12), ctx.scale(s, 4)),
            ctx.scale(b, 3));
  EXPECT_EQ(
      ctx.exactDiv(ctx.add(ctx.scale(p, 16), ctx.scale(s, 16)), ctx.add(p, s)),
      num(16));
  EXPECT_EQ(ctx.exactDiv(s, p), nullptr);
  EXPECT_EQ(ctx.exactDiv(s, num(0)), nullptr);
  EXPECT_EQ(ctx.floorDiv(num(-7), num(2)), num(-4));
  EXPECT_EQ(ctx.mod(num(-7), num(2)), num(1));
}

TEST_F(SymbolicExpr, IndicesSplitAndJoin) {
  // b * 4 + h with h < 4.
  ExprRef n = ctx.getIndex("n", b), h = ctx.getIndex("h", num(4));
  ExprRef linear = ctx.add(ctx.scale(n, 4), h);
  EXPECT_EQ(ctx.floorDiv(linear, num(4)), n);
  EXPECT_EQ(ctx.mod(linear, num(4)), h);
  // (h / 2, h % 2) and back.
  ExprRef high = ctx.floorDiv(h, num(2)), low = ctx.mod(h, num(2));
  EXPECT_TRUE(high->is(Kind::FloorDiv));
  EXPECT_EQ(ctx.add(ctx.scale(high, 2), low), h);
  // n * (p + s) + j with j < p + s.
  ExprRef t = ctx.add(p, s), j = ctx.getIndex("j", t);
  EXPECT_EQ(ctx.floorDiv(ctx.add(ctx.mul(n, t), j), t), n);
  EXPECT_EQ(ctx.mod(ctx.add(ctx.mul(n, t), j), t), j);
  // j may be as large as p.
  EXPECT_NE(ctx.floorDiv(ctx.add(ctx.mul(n, p), j), p), n);
}

TEST_F(SymbolicExpr, Bounds) {
  ExprRef i = ctx.getIndex("i", s);
  EXPECT_TRUE(ctx.proveNonNegative(ctx.sub(ctx.sub(s, i), num(1))));
  EXPECT_FALSE(ctx.proveNonNegative(ctx.sub(ctx.sub(s, i), num(2))));
  EXPECT_FALSE(ctx.proveNonNegative(ctx.sub(s, p)));
  EXPECT_TRUE(ctx.ge0(i)->isTrue());
  EXPECT_TRUE(ctx.ge0(ctx.sub(i, s))->isFalse());
  EXPECT_TRUE(ctx.ge0(ctx.sub(i, p))->is(Kind::Ge0));
  EXPECT_TRUE(ctx.proveNonNegative(ctx.sub(s, ctx.min(s, p))));
  EXPECT_TRUE(ctx.proveNonNegative(ctx.sub(ctx.max(s, p), p)));
  // A size may be 0 unless it is known not to be.
  EXPECT_FALSE(ctx.provePositive(s));
  ctx.assumePositive(s);
  EXPECT_TRUE(ctx.provePositive(s));
  EXPECT_EQ(ctx.min(s, num(1)), num(1));
}

TEST_F(SymbolicExpr, Facts) {
  ExprRef fresh = ctx.freshSymbol("?");
  EXPECT_FALSE(ctx.proveEqual(fresh, ctx.add(s, p)));
  ctx.assumeEqual(ctx.add(s, p), fresh);
  EXPECT_TRUE(ctx.proveEqual(fresh, ctx.add(s, p)));
  EXPECT_FALSE(ctx.proveEqual(s, p));
  // Facts that solve for nothing are left.
  ctx.assumeEqual(ctx.mul(s, s), ctx.mul(p, p));
  EXPECT_FALSE(ctx.proveEqual(s, p));
}

TEST_F(SymbolicExpr, LowerBounds) {
  ExprRef t = ctx.getSymbol("t"), both = ctx.add(s, p);
  EXPECT_FALSE(ctx.proveNonNegative(ctx.sub(t, both)));
  ctx.assumeNonNegative(ctx.sub(t, both));
  EXPECT_TRUE(ctx.proveNonNegative(ctx.sub(t, both)));
  EXPECT_TRUE(ctx.proveNonNegative(ctx.sub(t, s)));
  EXPECT_FALSE(ctx.proveNonNegative(ctx.sub(both, t)));
  EXPECT_FALSE(ctx.proveNonNegative(ctx.sub(t, ctx.add(both, num(1)))));
  // Bounds in a circle end.
  ctx.assumeNonNegative(ctx.sub(b, t));
  ctx.assumeNonNegative(ctx.sub(t, b));
  EXPECT_TRUE(ctx.proveNonNegative(ctx.sub(b, both)));
  EXPECT_FALSE(ctx.proveNonNegative(ctx.sub(s, t)));
}

TEST_F(SymbolicExpr, Formulas) {
  ExprRef i = ctx.getIndex("i", s), j = ctx.getIndex("j", s);
  ExprRef causal = ctx.ge0(ctx.sub(i, j));
  EXPECT_EQ(ctx.logicalNot(ctx.logicalNot(causal)), causal);
  EXPECT_TRUE(ctx.logicalAnd(causal, ctx.logicalNot(causal))->isFalse());
  EXPECT_TRUE(ctx.logicalOr(causal, ctx.logicalNot(causal))->isTrue());
  ExprRef same = ctx.eq0(ctx.sub(i, j));
  EXPECT_EQ(ctx.logicalNot(ctx.logicalOr(causal, same)),
            ctx.logicalAnd(ctx.logicalNot(causal), ctx.logicalNot(same)));
  EXPECT_EQ(ctx.eq0(ctx.sub(i, j)), ctx.eq0(ctx.sub(j, i)));
  // A mask as numbers and back.
  ExprRef number = ctx.select(causal, num(1), num(0));
  EXPECT_EQ(ctx.eq0(ctx.sub(num(1), number)), causal);
  // |i - j| <= 4 is two inequalities.
  ExprRef d = ctx.sub(i, j);
  ExprRef near = ctx.ge0(ctx.sub(num(4), ctx.max(d, ctx.scale(d, -1))));
  EXPECT_EQ(near, ctx.logicalAnd(ctx.ge0(ctx.sub(num(4), d)),
                                 ctx.ge0(ctx.add(num(4), d))));
}

TEST_F(SymbolicExpr, Hostile) {
  // Neither overflow nor size: what does not fit becomes opaque.
  ExprRef big = num(INT64_MAX);
  EXPECT_TRUE(ctx.add(big, num(1))->is(Kind::Apply));
  EXPECT_TRUE(ctx.mul(big, num(2))->is(Kind::Apply));
  EXPECT_TRUE(ctx.scale(num(INT64_MIN), -1)->is(Kind::Apply));
  ExprRef e = s;
  for (int k = 0; k < 200; ++k)
    e = ctx.add(ctx.mul(e, e), ctx.freshSymbol("x"));
  ExprRef nested = s;
  for (int k = 0; k < 2000; ++k)
    nested = ctx.min(ctx.max(nested, ctx.freshSymbol("y")), p);
  (void)ctx.ge0(ctx.sub(nested, e));
  (void)ctx.str(nested);
  EXPECT_FALSE(ctx.proveEqual(nested, e));
}

} // namespace
