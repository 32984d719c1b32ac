//===- PrefillOps.td - Operations of the prefill dialect ---*- tablegen -*-===//
#ifndef PREFILL_DIALECT_PREFILL_PREFILLOPS_TD
#define PREFILL_DIALECT_PREFILL_PREFILLOPS_TD

include "prefill/Dialect/Prefill/PrefillDialect.td"
include "mlir/Interfaces/SideEffectInterfaces.td"

class Prefill_Op<string mnemonic, list<Trait> traits = []>
    : Op<PrefillDialect, mnemonic, traits>;

//===----------------------------------------------------------------------===//
// Attention
//===----------------------------------------------------------------------===//

// Operands and attributes that dense and sparse attention share. Operands stand
// in the order of prefill_attention_input (runtime/include/prefill/prefill.h).
defvar attentionOperands = (ins
  AnyType:$q, AnyType:$k, AnyType:$v,
  Optional<AnyType>:$bias, Optional<AnyType>:$key_mask,
  Optional<AnyType>:$kv_lengths, Optional<AnyType>:$sinks,
  Optional<AnyType>:$q_segment, Optional<AnyType>:$k_segment,
  Optional<AnyType>:$q_offset, Optional<AnyType>:$cos, Optional<AnyType>:$sin,
  Optional<AnyType>:$q_positions, Optional<AnyType>:$segment_starts,
  Optional<AnyType>:$past_k, Optional<AnyType>:$past_v,
  Optional<AnyType>:$cache_slots, Optional<AnyType>:$score_rows,
  Optional<AnyType>:$context_slots, Optional<AnyType>:$kept_rows);
defvar attentionAttrs = (ins
  ConfinedAttr<I64Attr, [IntPositive]>:$q_heads,
  ConfinedAttr<I64Attr, [IntPositive]>:$kv_heads,
  ConfinedAttr<I64Attr, [IntPositive]>:$head_dim,
  ConfinedAttr<I64Attr, [IntPositive]>:$v_head_dim,
  F32Attr:$scale,
  UnitAttr:$causal,
  OptionalAttr<I64Attr>:$window_left, OptionalAttr<I64Attr>:$window_right,
  OptionalAttr<F32Attr>:$softcap,
  DefaultValuedAttr<Prefill_AlignAttr, "::prefill::QueryAlignment::End">:$alignment,
  DefaultValuedAttr<Prefill_RowRuleAttr, "::prefill::MaskedRowRule::Zero">:$masked_row,
  DefaultValuedAttr<Prefill_LayoutAttr, "::prefill::TensorLayout::BHSD">:$q_layout,
  DefaultValuedAttr<Prefill_LayoutAttr, "::prefill::TensorLayout::BHSD">:$k_layout,
  DefaultValuedAttr<Prefill_LayoutAttr, "::prefill::TensorLayout::BHSD">:$v_layout,
  DefaultValuedAttr<Prefill_LayoutAttr, "::prefill::TensorLayout::BHSD">:$o_layout,
  DefaultValuedAttr<Prefill_RotaryAttr, "::prefill::RotaryKind::None">:$rotary,
  DefaultValuedAttr<I64Attr, "0">:$rotary_dim,
  OptionalAttr<F32Attr>:$context_temperature,
  OptionalAttr<F32Attr>:$context_scale,
  OptionalAttr<StrAttr>:$layer, OptionalAttr<StrAttr>:$form);

defvar attentionDescription = [{
    Shapes: q `[b,hq,s,d]` (layout `bhsd`) or `[b,s,hq,d]` / `[b,s,hq*d]`
    (layout `bshd`); k and v the same with hk, t and e; o as q with e for d. hk
    divides hq; query head h reads KV head `h / (hq/hk)` (K and V are never
    expanded). Scores are `scale * q.k`, then `softcap * tanh(x / softcap)`, then
    `+ bias`, then masked, then soft-maxed in fp32 over visible keys (`sinks` adds
    one logit a head to the denominator).

    * `bias`: `[b|1, hq|1, s|1, t]` or lower rank, bool (true: visible) or
      floats (added in fp32; -inf: invisible. Rows with nothing but finite minima are
      what softmax in fp32 gives; with `masked_row` mean they are rows without
      keys).
    * `key_mask`: `[b,t]` bool or integer; nonzero: visible.
    * `kv_lengths`: `[b]`; keys at or past it are invisible.
    * `causal`: j <= i + offset. `window_left`: j >= i + offset - window_left (so
      window_left + 1 keys with `causal`). `window_right` likewise.
    * `alignment`: the offset is t - s (`end`), 0 (`start`), or `q_offset`; or
      each row's key position is in `q_positions` (`[s]` or `[b|1, s]`, any
      order), with `operand` too.
    * `segment_starts`: `[n+1]`; the rows are n prompts one after the other, each
      with the keys from its start to the next one's, and sees only those.
      Positions and table rows count through all of them.
    * `cache(past_k, past_v, slots)`, with segment_starts: the KV cache that k and
      v are appended to before they are read, `[1,hk,rows,d]` and `[1,hk,rows,e]`
      (k rotated). slots `[n, 2]`: the row at which each prompt's keys begin, and
      how many it holds; the rows of the prompt come after these (SARATHI,
      arXiv:2308.16369). The results `present` are the cache afterwards, in the
      same memory if the caller binds it so.
    * `contexts(slots)`, with a causal attention with a cache: `[n, 2]`, the first
      row and the number of cache rows that hold the keys of contexts encoded
      before, each independently of the others. Every row of the prompt sees all
      of them by a softmax of its own, at scale / T, and the two attentions are
      merged by their lse: `o = w_c o_c + w_o o_o`, `(w_c, w_o) =
      softmax(S T lse_c, lse_o)`, T = `context_temperature`, S =
      `context_scale`; a prompt without contexts gives o_o (APE,
      arXiv:2502.05431). T = S = 1 is one softmax over all keys.
    * `kept(rows)`, with a cache: `[m]` or `[1,m]` i64, ascending rows of k. After
      the call the cache holds these of the new rows and no others; they stand
      side by side behind the ones held before. The call itself sees all rows.
    * `masked_row`: a row without visible keys gives 0, the mean of all values
      (additive masks with equal finite minima), NaN (unguarded -inf), or scores:
      what it would give if no key were masked (float16's -65504 is added to every
      score and swallows none). The last one not with a bias or segments.
    * `rotary`: the first rotary_dim elements of q's and k's rows are rotated by
      `cos`, `sin` (`[s', w]` or `[b|1, s', w]`, w = rotary_dim / 2 or
      rotary_dim) before the product; table row p is for key position p (Su et
      al., RoFormer, arXiv:2104.09864).
    * `layer`, `form`: for reports: where the op came from, which form was raised.

    lse is `[b,hq,s]` fp32, natural logarithm, -inf for masked rows. rotated_k is
    k after `rotary`, `[b,hk,t,d]`: what a KV cache holds. token_score is `[b,t]`
    fp32: the mean over the query heads of the probability that the last visible
    row (of each segment; with `q_positions` the last row of q, and no segments)
    gives to each key; a sparse index does not change it.
    With `score_rows` (`[b,s]` bool) it is the sum of these means over the rows
    that are marked, and token_peak, `[b,t]`, their maximum; both 0 where none is.
    A mean is taken before the maximum.
  }];

def Prefill_AttentionOp : Prefill_Op<"attention",
    [Pure, AttrSizedOperandSegments, AttrSizedResultSegments]> {
  let summary = "Dense scaled dot-product attention, every form of it";
  let description = attentionDescription;
  let arguments = !con(attentionOperands, attentionAttrs);
  let results = (outs AnyType:$o, Optional<AnyType>:$lse,
                 Optional<AnyType>:$rotated_k, Optional<AnyType>:$present_k,
                 Optional<AnyType>:$present_v, Optional<AnyType>:$token_score,
                 Optional<AnyType>:$token_peak);
  let assemblyFormat = [{
    $q `,` $k `,` $v (`bias` `(` $bias^ `:` type($bias) `)`)?
    (`key_mask` `(` $key_mask^ `:` type($key_mask) `)`)?
    (`kv_lengths` `(` $kv_lengths^ `:` type($kv_lengths) `)`)?
    (`sinks` `(` $sinks^ `:` type($sinks) `)`)?
    (`segments` `(` $q_segment^ `,` $k_segment `:` type($q_segment) `,` type($k_segment) `)`)?
    (`q_offset` `(` $q_offset^ `:` type($q_offset) `)`)?
    (`rotary` `(` $cos^ `,` $sin `:` type($cos) `,` type($sin) `)`)?
    (`q_positions` `(` $q_positions^ `:` type($q_positions) `)`)?
    (`segment_starts` `(` $segment_starts^ `:` type($segment_starts) `)`)?
    (`cache` `(` $past_k^ `,` $past_v `,` $cache_slots `:` type($past_k) `,` type($past_v) `,` type($cache_slots) `)`)?
    (`contexts` `(` $context_slots^ `:` type($context_slots) `)`)?
    (`score_rows` `(` $score_rows^ `:` type($score_rows) `)`)?
    (`kept` `(` $kept_rows^ `:` type($kept_rows) `)`)?
    attr-dict `:` type($q) `,` type($k) `,` type($v) `->` type($o) (`,` type($lse)^)?
    (`rotated_k` `:` type($rotated_k)^)?
    (`present` `:` type($present_k)^ `,` type($present_v))?
    (`token_score` `:` type($token_score)^)?
    (`token_peak` `:` type($token_peak)^)?
  }];
  let hasVerifier = 1;
}

def Prefill_SparseAttentionOp : Prefill_Op<"sparse_attention",
    [Pure, AttrSizedOperandSegments, AttrSizedResultSegments]> {
  let summary = "Attention over the key blocks and columns of an index";
  let description = !strconcat([{
    As `prefill.attention`, with keys that the index leaves out invisible. The
    index never adds visibility: masks still hold.
  }], attentionDescription);
  let arguments = !con(attentionOperands, (ins Prefill_IndexType:$index),
                       attentionAttrs);
  let results = (outs AnyType:$o, Optional<AnyType>:$lse,
                 Optional<AnyType>:$rotated_k, Optional<AnyType>:$present_k,
                 Optional<AnyType>:$present_v, Optional<AnyType>:$token_score,
                 Optional<AnyType>:$token_peak);
  let assemblyFormat = [{
    $q `,` $k `,` $v `,` $index (`bias` `(` $bias^ `:` type($bias) `)`)?
    (`key_mask` `(` $key_mask^ `:` type($key_mask) `)`)?
    (`kv_lengths` `(` $kv_lengths^ `:` type($kv_lengths) `)`)?
    (`sinks` `(` $sinks^ `:` type($sinks) `)`)?
    (`segments` `(` $q_segment^ `,` $k_segment `:` type($q_segment) `,` type($k_segment) `)`)?
    (`q_offset` `(` $q_offset^ `:` type($q_offset) `)`)?
    (`rotary` `(` $cos^ `,` $sin `:` type($cos) `,` type($sin) `)`)?
    (`q_positions` `(` $q_positions^ `:` type($q_positions) `)`)?
    (`segment_starts` `(` $segment_starts^ `:` type($segment_starts) `)`)?
    (`cache` `(` $past_k^ `,` $past_v `,` $cache_slots `:` type($past_k) `,` type($past_v) `,` type($cache_slots) `)`)?
    (`contexts` `(` $context_slots^ `:` type($context_slots) `)`)?
    (`score_rows` `(` $score_rows^ `:` type($score_rows) `)`)?
    (`kept` `(` $kept_rows^ `:` type($kept_rows) `)`)?
    attr-dict `:` type($q) `,` type($k) `,` type($v) `->` type($o) (`,` type($lse)^)?
    (`rotated_k` `:` type($rotated_k)^)?
    (`present` `:` type($present_k)^ `,` type($present_v))?
    (`token_score` `:` type($token_score)^)?
    (`token_peak` `:` type($token_peak)^)?
  }];
  let hasVerifier = 1;
}

//===----------------------------------------------------------------------===//
// Score
//===----------------------------------------------------------------------===//

def Prefill_ScoreLastRowsOp : Prefill_Op<"score.last_rows", [Pure]> {
  let summary = "Column and diagonal sums of the last query rows' probabilities";
  let description = [{
    A = softmax of the last `rows` query rows over the keys visible to them (masks
    as in the attention that uses the index). `columns[j]` = sum of A[r, j];
    `diagonals[x]` = sum of A over key j = position(r) - x. MInference
    (arXiv:2407.02490), vertical-slash.
  }];
  let arguments = (ins AnyType:$q, AnyType:$k,
                   ConfinedAttr<I64Attr, [IntPositive]>:$rows);
  let results = (outs Prefill_ScoresType:$columns, Prefill_ScoresType:$diagonals);
  let assemblyFormat = "$q `,` $k `rows` $rows attr-dict `:` type($q) `,` type($k) `->` type($columns) `,` type($diagonals)";
  let hasVerifier = 1;
}

def Prefill_ScorePooledOp : Prefill_Op<"score.pooled", [Pure]> {
  let summary = "Products of mean-pooled query and key blocks";
  let description = [{
    scores[qb, kb] = mean(q in block qb) . mean(k in block kb). MInference,
    block-sparse. With `softmax`: the softmax of these, scaled as the attention's
    scores, over the visible blocks of a row, which are shares of its mass.
  }];
  let arguments = (ins AnyType:$q, AnyType:$k, UnitAttr:$softmax);
  let results = (outs Prefill_ScoresType:$scores);
  let assemblyFormat = "$q `,` $k attr-dict `:` type($q) `,` type($k) `->` type($scores)";
  let hasVerifier = 1;
}

def Prefill_ScoreAntidiagonalOp : Prefill_Op<"score.antidiagonal", [Pure]> {
  let summary = "Block mass estimated from sums along antidiagonals";
  let description = [{
    With T = `stride`, X[i, j] = scale / T * sum over t < T of
    q[i T + T - 1 - t] . k[j T + t]: every query and key takes part in one of T
    products. scores[qb, kb] = sum of softmax over visible j of X, over the
    strided rows of block qb and keys of block kb, so that a row of blocks sums
    up to its strided rows. XAttention (arXiv:2503.16428).
  }];
  let arguments = (ins AnyType:$q, AnyType:$k,
                   ConfinedAttr<I64Attr, [IntPositive]>:$stride);
  let results = (outs Prefill_ScoresType:$scores);
  let assemblyFormat = "$q `,` $k `stride` $stride attr-dict `:` type($q) `,` type($k) `->` type($scores)";
  let hasVerifier = 1;
}

def Prefill_ScoreSampledOp : Prefill_Op<"score.sampled", [Pure]> {
  let summary = "Block mass of every stride-th query row, exact";
  let description = [{
    Of every `stride` query rows, counted from a tile's first, the last one stands
    for all: scores[qb, kb] = sum over the sampled rows of block qb of their
    probabilities over the keys of block kb (softmax over all visible keys). Rows
    sampled as in SampleAttention (arXiv:2406.15486). With `values`, a row's mass
    of a block counts times |o - u|, where u is the mean of v over the block and
    o, for the row's output, the sum of all u by their masses: to first order,
    what the output moves by without the block.
  }];
  let arguments = (ins AnyType:$q, AnyType:$k, Optional<AnyType>:$v,
                   ConfinedAttr<I64Attr, [IntPositive]>:$stride);
  let results = (outs Prefill_ScoresType:$scores);
  let assemblyFormat = "$q `,` $k (`values` `(` $v^ `:` type($v) `)`)? `stride` $stride attr-dict `:` type($q) `,` type($k) `->` type($scores)";
  let hasVerifier = 1;
}

def Prefill_ScoreQuantizedOp : Prefill_Op<"score.quantized", [Pure]> {
  let summary = "Block scores of quantised queries and keys";
  let description = [{
    s[i, j] is the scaled product of query row i and key j, both quantised to
    `bits` bits. Without `reference`, scores[qb, kb] is the mass of the block: its
    rows' softmax of s over all visible keys, summed over the block (of every
    `stride` rows only the last is looked at); `values` as of score.sampled. With
    `reference(init, local)` it is the largest probability of a pair of the block,
    exp(s[i, j] - m[i]) / l[i], with row maximum m and sum l taken over the exact
    scores of the first `init` keys and the last `local` keys before the row:
    SALE (arXiv:2505.24179).
  }];
  let arguments = (ins AnyType:$q, AnyType:$k, Optional<AnyType>:$v, I64Attr:$bits,
                   DefaultValuedAttr<ConfinedAttr<I64Attr, [IntPositive]>, "1">:$stride,
                   OptionalAttr<ConfinedAttr<I64Attr, [IntNonNegative]>>:$init,
                   OptionalAttr<ConfinedAttr<I64Attr, [IntNonNegative]>>:$local);
  let results = (outs Prefill_ScoresType:$scores);
  let assemblyFormat = "$q `,` $k (`values` `(` $v^ `:` type($v) `)`)? `bits` $bits (`reference` `(` $init^ `,` $local `)`)? attr-dict `:` type($q) `,` type($k) `->` type($scores)";
  let hasVerifier = 1;
}

def Prefill_ScoreCompressedOp : Prefill_Op<"score.compressed", [Pure]> {
  let summary = "Probabilities over means of neighbouring keys, summed over a group";
  let description = [{
    Every query row's softmax over the means of `keys` consecutive keys, one mean
    every `every` keys; summed over the query heads that share a KV head, so that
    they all get the same scores, and over the rows of block qb; scores[qb, kb] is
    the largest over the means that touch block kb. InfLLM v2 (MiniCPM4,
    arXiv:2506.07900), which scores every query row by itself.
  }];
  let arguments = (ins AnyType:$q, AnyType:$k,
                   ConfinedAttr<I64Attr, [IntPositive]>:$keys,
                   ConfinedAttr<I64Attr, [IntPositive]>:$every);
  let results = (outs Prefill_ScoresType:$scores);
  let assemblyFormat = "$q `,` $k `keys` $keys `every` $every attr-dict `:` type($q) `,` type($k) `->` type($scores)";
  let hasVerifier = 1;
}

def Prefill_ScoreGridOp : Prefill_Op<"score.grid", [Pure]> {
  let summary = "Attention of the last query rows on lines at regular distances";
  let description = [{
    A as of score.last_rows. scores[s, p], for strides s and phases p < s: the sum
    of A over the first `init` keys, over other keys j with j mod s = p
    (`vertical`) and over keys at a distance from their row that is a multiple of
    s (`slash`; the distance 0 always counts), by the number of rows. Strides from
    2 to 1024 and at most a quarter of the keys, or `stride` alone. Grid heads of
    MMInference (arXiv:2504.16083).
  }];
  let arguments = (ins AnyType:$q, AnyType:$k,
                   ConfinedAttr<I64Attr, [IntPositive]>:$rows,
                   ConfinedAttr<I64Attr, [IntNonNegative]>:$init,
                   OptionalAttr<ConfinedAttr<I64Attr, [IntPositive]>>:$stride,
                   UnitAttr:$vertical, UnitAttr:$slash);
  let results = (outs Prefill_ScoresType:$scores);
  let assemblyFormat = "$q `,` $k `rows` $rows `init` $init (`stride` $stride^)? (`vertical` $vertical^)? (`slash` $slash^)? attr-dict `:` type($q) `,` type($k) `->` type($scores)";
  let hasVerifier = 1;
}

def Prefill_ScoreBoundaryOp : Prefill_Op<"score.boundary", [Pure]> {
  let summary = "Column and diagonal sums per modality";
  let description = [{
    `modality` `[b, t]` or `[t]` says what kind of token each key is. As
    score.last_rows, for every modality by itself: of the last `rows` query rows
    of the last run of the modality that is so long, or of its longest. With
    `pairs` for every pair with a modality of keys, over just these. MMInference's
    Q- and 2D-boundary (arXiv:2504.16083).
  }];
  let arguments = (ins AnyType:$q, AnyType:$k, AnyType:$modality,
                   ConfinedAttr<I64Attr, [IntPositive]>:$rows, UnitAttr:$pairs);
  let results = (outs Prefill_ScoresType:$columns, Prefill_ScoresType:$diagonals);
  let assemblyFormat = "$q `,` $k `modality` `(` $modality `:` type($modality) `)` `rows` $rows (`pairs` $pairs^)? attr-dict `:` type($q) `,` type($k) `->` type($columns) `,` type($diagonals)";
  let hasVerifier = 1;
}

//===----------------------------------------------------------------------===//
// Select
//===----------------------------------------------------------------------===//

def Prefill_SelectOp : Prefill_Op<"select", [Pure]> {
  let summary = "Keep the entries with the largest scores";
  let description = [{
    Exactly one of these says how many:
    * `top_k`: entries; per row of query blocks for block scores;
    * `density`: share of causal blocks that the index may keep, counted after
      merging;
    * `top_p`, for scores that are shares of mass: always kept ones, then others
      from the largest on as long as those before hold less than top_p of the sum
      (of a row of query blocks for block scores);
    * `threshold`: every entry above it.

    Always kept, whatever their score: `forced` entries with the lowest numbers
    (first keys, shortest distances, first blocks), the diagonal's blocks, blocks
    with one of the first `init` keys, blocks with one of the `near` keys before a
    row, and of columns and diagonals the largest that make up `min_tokens`. Ties
    go to the lower index.

    Of grid scores one is kept: the largest (`top_k = 1`), or of those that are
    `top_p` or more the cheapest to visit, none if there is none.
  }];
  let arguments = (ins Prefill_ScoresType:$scores, OptionalAttr<I64Attr>:$top_k,
                   OptionalAttr<F32Attr>:$density,
                   OptionalAttr<F32Attr>:$top_p,
                   OptionalAttr<F32Attr>:$threshold,
                   DefaultValuedAttr<ConfinedAttr<I64Attr, [IntNonNegative]>, "0">:$forced,
                   DefaultValuedAttr<ConfinedAttr<I64Attr, [IntNonNegative]>, "0">:$init,
                   DefaultValuedAttr<ConfinedAttr<I64Attr, [IntNonNegative]>, "0">:$near,
                   DefaultValuedAttr<ConfinedAttr<I64Attr, [IntNonNegative]>, "0">:$min_tokens);
  let results = (outs Prefill_SelectionType:$selection);
  let assemblyFormat = "$scores attr-dict `:` type($scores) `->` type($selection)";
  let hasVerifier = 1;
}

def Prefill_KeepDissimilarOp : Prefill_Op<"keep_dissimilar", [Pure]> {
  let summary = "Keep blocks too, that one mean does not stand for";
  let description = [{
    Adds to the selected blocks all blocks of keys, and all rows of query blocks,
    whose rows have a mean cosine with each other below `below`; of keys less the
    mean of all visible ones. SpargeAttn (arXiv:2502.18137).
  }];
  let arguments = (ins Prefill_SelectionType:$blocks, AnyType:$q, AnyType:$k,
                   F32Attr:$below);
  let results = (outs Prefill_SelectionType:$selection);
  let assemblyFormat = "$blocks `,` $q `,` $k `below` $below attr-dict `:` type($blocks) `,` type($q) `,` type($k) `->` type($selection)";
  let hasVerifier = 1;
}

//===----------------------------------------------------------------------===//
// Index
//===----------------------------------------------------------------------===//

def Prefill_IndexDenseOp : Prefill_Op<"index.dense", [Pure]> {
  let summary = "Everything that is visible";
  let results = (outs Prefill_IndexType:$index);
  let assemblyFormat = "attr-dict";
}

def Prefill_IndexAShapeOp : Prefill_Op<"index.a_shape", [Pure]> {
  let summary = "The first `init` keys and the last `local` keys of each row";
  let description = [{
    Also called streaming heads; MInference, StreamingLLM (arXiv:2309.17453). Kept
    in whole blocks.
  }];
  let arguments = (ins ConfinedAttr<I64Attr, [IntNonNegative]>:$init,
                   ConfinedAttr<I64Attr, [IntNonNegative]>:$local);
  let results = (outs Prefill_IndexType:$index);
  let assemblyFormat = "`init` $init `local` $local attr-dict";
}

def Prefill_IndexTriShapeOp : Prefill_Op<"index.tri_shape", [Pure]> {
  let summary = "A-shape with the last `last` query rows dense";
  let arguments = (ins ConfinedAttr<I64Attr, [IntNonNegative]>:$init,
                   ConfinedAttr<I64Attr, [IntNonNegative]>:$local,
                   ConfinedAttr<I64Attr, [IntNonNegative]>:$last);
  let results = (outs Prefill_IndexType:$index);
  let assemblyFormat = "`init` $init `local` $local `last` $last attr-dict";
}

def Prefill_IndexStridedOp : Prefill_Op<"index.strided", [Pure]> {
  let summary = "A-shape and the blocks at every `stride`-th block distance";
  let description = [{
    The first `init` keys, the last `local` keys of each row, and the blocks whose
    distance to the row's own is a multiple of `stride` blocks. LongGen's sparse
    layers (arXiv:2410.01485). Kept in whole blocks.
  }];
  let arguments = (ins ConfinedAttr<I64Attr, [IntNonNegative]>:$init,
                   ConfinedAttr<I64Attr, [IntNonNegative]>:$local,
                   ConfinedAttr<I64Attr, [IntPositive]>:$stride);
  let results = (outs Prefill_IndexType:$index);
  let assemblyFormat = "`init` $init `local` $local `stride` $stride attr-dict";
}

def Prefill_IndexRelativeOp : Prefill_Op<"index.relative", [Pure]> {
  let summary = "Selected columns and the blocks that selected diagonals touch";
  let arguments = (ins Prefill_SelectionType:$columns,
                   Prefill_SelectionType:$diagonals);
  let results = (outs Prefill_IndexType:$index);
  let assemblyFormat = "$columns `,` $diagonals attr-dict `:` type($columns) `,` type($diagonals)";
  let hasVerifier = 1;
}

def Prefill_IndexBlocksOp : Prefill_Op<"index.blocks", [Pure]> {
  let summary = "Selected blocks, per row of query blocks";
  let arguments = (ins Prefill_SelectionType:$blocks);
  let results = (outs Prefill_IndexType:$index);
  let assemblyFormat = "$blocks attr-dict `:` type($blocks)";
  let hasVerifier = 1;
}

def Prefill_IndexBoundaryOp : Prefill_Op<"index.boundary", [Pure]> {
  let summary = "Selected columns and diagonals of each modality";
  let description = [{
    As index.relative, for runs of query rows of one modality: the columns and
    diagonals that were selected for it; of a pair of modalities its diagonals
    keep the blocks with keys of the one.
  }];
  let arguments = (ins Prefill_SelectionType:$columns,
                   Prefill_SelectionType:$diagonals, AnyType:$modality);
  let results = (outs Prefill_IndexType:$index);
  let assemblyFormat = "$columns `,` $diagonals `modality` `(` $modality `:` type($modality) `)` attr-dict `:` type($columns) `,` type($diagonals)";
  let hasVerifier = 1;
}

def Prefill_IndexGridOp : Prefill_Op<"index.grid", [Pure]> {
  let summary = "The lines of the selected stride and phase";
  let description = [{
    The keys that made the selected score, for every row; with `horizontal` rows
    at positions of the phase see everything, and so do tiles with one of the
    `last` query rows. Dense if nothing is selected.
  }];
  let arguments = (ins Prefill_SelectionType:$grid,
                   ConfinedAttr<I64Attr, [IntPositive]>:$last,
                   UnitAttr:$horizontal);
  let results = (outs Prefill_IndexType:$index);
  let assemblyFormat = "$grid `last` $last (`horizontal` $horizontal^)? attr-dict `:` type($grid)";
  let hasVerifier = 1;
}

def Prefill_IndexAgreeingOp : Prefill_Op<"index.agreeing", [Pure]> {
  let summary = "One index for heads whose two estimates agree, another otherwise";
  let description = [{
    Per head: D is the square root of the Jensen-Shannon divergence between
    `columns` summed over blocks and the last row of `blocks`, both made to sum
    up to 1. `otherwise` unless D < `below`; else `agreeing` with those columns and
    diagonals that the selections of `otherwise` keep for their `min_tokens`.
    FlexPrefill (arXiv:2502.20766): a head whose pooled estimate is right where it
    can be checked selects blocks by it.
  }];
  let arguments = (ins Prefill_ScoresType:$columns, Prefill_ScoresType:$blocks,
                   F32Attr:$below, Prefill_IndexType:$agreeing,
                   Prefill_IndexType:$otherwise);
  let results = (outs Prefill_IndexType:$index);
  let assemblyFormat = "$columns `,` $blocks `below` $below `?` $agreeing `:` $otherwise attr-dict `:` type($columns) `,` type($blocks)";
  let hasVerifier = 1;
}

def Prefill_IndexSkipOp : Prefill_Op<"index.skip", [Pure]> {
  let summary = "Leaves out what a kernel finds to be negligible on the way";
  let description = [{
    Visits `index`, but of a tile of keys only the scores where, in every row, the
    largest of them is below `below` times the largest that the row has seen in
    the tiles before it (as powers of e). SpargeAttn (arXiv:2502.18137), BLASST
    (arXiv:2512.12087).
  }];
  let arguments = (ins Prefill_IndexType:$index, F32Attr:$below);
  let results = (outs Prefill_IndexType:$result);
  let assemblyFormat = "$index `below` $below attr-dict";
  let hasVerifier = 1;
}

def Prefill_IndexPerHeadOp : Prefill_Op<"index.per_head", [Pure]> {
  let summary = "An index for each query head";
  let description = [{`heads[h]` is the operand that query head h uses.}];
  let arguments = (ins Variadic<Prefill_IndexType>:$choices,
                   DenseI64ArrayAttr:$heads);
  let results = (outs Prefill_IndexType:$index);
  let assemblyFormat = "$choices `heads` $heads attr-dict";
  let hasVerifier = 1;
}

//===----------------------------------------------------------------------===//
// Rows
//===----------------------------------------------------------------------===//

def Prefill_FlowScoreOp : Prefill_Op<"flow_score",
    [Pure, AttrSizedOperandSegments]> {
  let summary = "What information flows through each row of an image";
  let description = [{
    FlowCut (arXiv:2505.19536). With r the mean over the heads of the softmax of
    `scale * q_a . k_i` and m that of `value_scale * v_a . v_i`, over all rows i of
    an image, both made to sum up to 1 over its patches: shares = r, and score =
    previous / 2 + (r + m) * |w_i|_1 / 2 with w the mean of v over the heads. The
    anchor a is row 0 (`cls`), which is no patch and gets 0; without `cls` all rows
    are patches, and q_a and v_a are the means over the rows.

    In a language model the rows of the image are those of `columns` `[b,s]` bool,
    the softmax runs over these alone, all others get 0, and the anchor is the last
    row that is not 0 in `alive` `[b,s]` integer (none: the last one).

    q, k, v as of prefill.attention, with heads of one size; `kv_heads` and `rotary`
    with cos and sin as there, row i being at position i. previous `[b,s]` is the layer before's score (none: 0). score and
    shares `[b,s]` f32.
  }];
  let arguments = (ins AnyType:$q, AnyType:$k, AnyType:$v,
    Optional<AnyType>:$previous, Optional<AnyType>:$columns,
    Optional<AnyType>:$alive, Optional<AnyType>:$cos, Optional<AnyType>:$sin,
    ConfinedAttr<I64Attr, [IntPositive]>:$heads,
    ConfinedAttr<I64Attr, [IntPositive]>:$kv_heads,
    ConfinedAttr<I64Attr, [IntPositive]>:$head_dim, F32Attr:$scale,
    DefaultValuedAttr<F32Attr, "1.0f">:$value_scale, UnitAttr:$cls,
    DefaultValuedAttr<Prefill_RotaryAttr, "::prefill::RotaryKind::None">:$rotary,
    DefaultValuedAttr<ConfinedAttr<I64Attr, [IntNonNegative]>, "0">:$rotary_dim,
    DefaultValuedAttr<Prefill_LayoutAttr, "::prefill::TensorLayout::BHSD">:$q_layout,
    DefaultValuedAttr<Prefill_LayoutAttr, "::prefill::TensorLayout::BHSD">:$k_layout,
    DefaultValuedAttr<Prefill_LayoutAttr, "::prefill::TensorLayout::BHSD">:$v_layout);
  let results = (outs AnyType:$score, AnyType:$shares);
  let assemblyFormat = [{
    $q `,` $k `,` $v (`previous` `(` $previous^ `:` type($previous) `)`)?
    (`columns` `(` $columns^ `:` type($columns) `)`)?
    (`alive` `(` $alive^ `:` type($alive) `)`)?
    (`rotary` `(` $cos^ `,` $sin `:` type($cos) `,` type($sin) `)`)?
    attr-dict `:` type($q) `,` type($k) `,` type($v) `->` type($score) `,` type($shares)
  }];
  let hasVerifier = 1;
}

def Prefill_KeyNormOp : Prefill_Op<"key_norm", [Pure]> {
  let summary = "A score of rows by the size of their keys";
  let description = [{
    score `[b,t]` f32 is minus the square of the Euclidean norm of a row's keys,
    those of all KV heads together: rows with small keys have the greatest score.
    k as of prefill.attention, before its rotation, which does not change norms.
    A norm that is no number gives NaN. QuickPrefill (TIGER-AI-Lab/QuickVideo).
  }];
  let arguments = (ins AnyType:$k,
    DefaultValuedAttr<Prefill_LayoutAttr, "::prefill::TensorLayout::BHSD">:$k_layout);
  let results = (outs AnyType:$score);
  let assemblyFormat = "$k attr-dict `:` type($k) `->` type($score)";
}

def Prefill_MergeWindowsOp : Prefill_Op<"merge_windows", [Pure]> {
  let summary = "Windows of alike patches become one row";
  let description = [{
    MustDrop (arXiv:2411.10803) in a vision encoder. Rows of x `[b,s,d]` from `skip`
    on are the patches of a `grid` x `grid` image, row by row. Of its windows of
    `height` x `width` patches, which do not overlap, those are merged whose mean
    cosine between two different patches is at least `similarity`, and that have no
    row of `protect` `[b,s]` bool; of every image as many as of the one with the
    fewest, the most alike first (of equal ones the first).

    y `[b,m,d]`: the first `skip` rows; the merged windows, the most alike first, as
    the mean of their patches; the other patches, in order. rows `[b,m]` i64: which
    row of x each of them is, a window by its first patch. merged `[1]` i64: how
    many windows were merged. What depends on the places of patches in the grid
    must not come after this.

    `protect` must be made by prefill.protect_rows.
  }];
  let arguments = (ins AnyType:$x, AnyType:$protect,
                   ConfinedAttr<I64Attr, [IntPositive]>:$grid,
                   ConfinedAttr<I64Attr, [IntPositive]>:$height,
                   ConfinedAttr<I64Attr, [IntPositive]>:$width,
                   F64Attr:$similarity,
                   ConfinedAttr<I64Attr, [IntNonNegative]>:$skip);
  let results = (outs AnyType:$y, AnyType:$rows, AnyType:$merged);
  let assemblyFormat = [{
    $x `protect` `(` $protect `:` type($protect) `)` `grid` $grid
    `window` $height `by` $width `similarity` $similarity `skip` $skip attr-dict
    `:` type($x) `->` type($y) `,` type($rows) `,` type($merged)
  }];
  let hasVerifier = 1;
}

def Prefill_ProtectRowsOp : Prefill_Op<"protect_rows",
    [Pure, AttrSizedOperandSegments]> {
  let summary = "The rows that no transform may drop";
  let description = [{
    protect is `[b,s]` bool; true for

    * the first `bos` and the last `last` rows of every segment (`last` is at
      least 1 where the prompt's last rows are the queries of the scores);
    * rows whose token in `ids` `[b,s]` lies in one of `id_ranges` (pairs
      low, high);
    * rows whose number in their segment lies in one of `row_ranges`;
    * rows where `given` `[b,s]` bool is true (a system prompt, say);
    * rows where `only` `[b,s]` bool is false (those that are no vision tokens);
    * rows that are `wanted` `[m]`: their logits are asked for.

    `alive` `[b,s]` integer: 0 for padding, which is no row of any segment;
    `segment_starts` as of prefill.attention.

    `parts` `[segments,2]` i64: every segment is a part of a prompt, with the
    number of its first row and how many rows of the prompt follow it. `bos`,
    `last` and `row_ranges` then count rows of the prompt, and a part that
    nothing follows (the question) is protected as a whole.
  }];
  let arguments = (ins AnyType:$ids, Optional<AnyType>:$given,
                   Optional<AnyType>:$alive, Optional<AnyType>:$segment_starts,
                   Optional<AnyType>:$wanted, Optional<AnyType>:$only,
                   Optional<AnyType>:$parts,
                   ConfinedAttr<I64Attr, [IntNonNegative]>:$bos,
                   ConfinedAttr<I64Attr, [IntNonNegative]>:$last,
                   DefaultValuedAttr<DenseI64ArrayAttr, "{}">:$id_ranges,
                   DefaultValuedAttr<DenseI64ArrayAttr, "{}">:$row_ranges);
  let results = (outs AnyType:$protect);
  let assemblyFormat = [{
    $ids (`given` `(` $given^ `:` type($given) `)`)?
    (`alive` `(` $alive^ `:` type($alive) `)`)?
    (`segment_starts` `(` $segment_starts^ `:` type($segment_starts) `)`)?
    (`wanted` `(` $wanted^ `:` type($wanted) `)`)?
    (`only` `(` $only^ `:` type($only) `)`)?
    (`parts` `(` $parts^ `:` type($parts) `)`)?
    `bos` $bos `last` $last attr-dict `:` type($ids) `->` type($protect)
  }];
  let hasVerifier = 1;
}

def Prefill_SelectRowsOp : Prefill_Op<"select_rows",
    [Pure, AttrSizedOperandSegments]> {
  let summary = "The rows that stay, by a score";
  let description = [{
    All rows that `protect` names, and more by one of these rules:

    * `keep`: of every segment those of the greatest `score` `[b,s]` (of equal ones
      the first; NaN is the greatest) until ceil(`keep` of its rows) stay. LazyLLM
      (arXiv:2407.14057). How many depends on the data only where more rows than
      that are protected, or with padding.
    * `global`, `individual`: all but those whose score is below `global` times the
      sum of the scores of the rows in `columns` `[b,s]` bool, and whose `peak`
      `[b,s]` is below `individual`. MustDrop (arXiv:2411.10803), batches of 1. How
      many stay depends on the data.
    * `target`, `left`: of the patches, all rows but the first `skip`, those of the
      greatest score. Of N > target patches round((N - target) / sqrt(left) *
      (1 - (H / ln N)^2)) go, H being the entropy of `shares` `[b,s]` (0 ln 0 is 0),
      or N - target where `left` is 0; so many as in the image of the batch that
      loses most. FlowCut (arXiv:2505.19536).
    * `target` with `columns`: of the rows in `columns` those of the greatest score
      until `target` of them stay (more where another entry of the batch keeps more
      rows in all). FlowCut in a language model.

    rows `[b,m]` i64, ascending; starts `[n+1]`: where each segment begins among
    them.

    `round_down`: floor, not ceil. `topk`: at most so many rows of a segment, and
    all of one that has no more than that (QuickPrefill).

    `protect` may not be left out: it is what keeps a prompt from having the
    rules that it stands under dropped, so it must be made by
    prefill.protect_rows, or gathered from what that made.
  }];
  let arguments = (ins AnyType:$score, Optional<AnyType>:$protect,
                   Optional<AnyType>:$alive, Optional<AnyType>:$segment_starts,
                   Optional<AnyType>:$peak, Optional<AnyType>:$columns,
                   Optional<AnyType>:$shares,
                   OptionalAttr<F64Attr>:$keep, OptionalAttr<F64Attr>:$global,
                   OptionalAttr<F64Attr>:$individual,
                   OptionalAttr<ConfinedAttr<I64Attr, [IntPositive]>>:$target,
                   OptionalAttr<ConfinedAttr<I64Attr, [IntNonNegative]>>:$left,
                   OptionalAttr<ConfinedAttr<I64Attr, [IntNonNegative]>>:$skip,
                   OptionalAttr<ConfinedAttr<I64Attr, [IntPositive]>>:$topk,
                   UnitAttr:$round_down);
  let results = (outs AnyType:$rows, Optional<AnyType>:$starts);
  let assemblyFormat = [{
    $score (`protect` `(` $protect^ `:` type($protect) `)`)?
    (`alive` `(` $alive^ `:` type($alive) `)`)?
    (`segment_starts` `(` $segment_starts^ `:` type($segment_starts) `)`)?
    (`peak` `(` $peak^ `:` type($peak) `)`)?
    (`columns` `(` $columns^ `:` type($columns) `)`)?
    (`shares` `(` $shares^ `:` type($shares) `)`)?
    (`keep` $keep^)? (`global` $global^)? (`individual` $individual^)?
    (`target` $target^)? (`left` $left^)? (`skip` $skip^)?
    attr-dict `:` type($score) `->` type($rows) (`,` type($starts)^)?
  }];
  let hasVerifier = 1;
}

#endif
