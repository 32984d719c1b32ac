//===- TileDialect.td - One kernel on tiles as SSA values --*- tablegen -*-===//
#ifndef PREFILL_DIALECT_TILE_TILEDIALECT_TD
#define PREFILL_DIALECT_TILE_TILEDIALECT_TD

include "mlir/IR/OpBase.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/EnumAttr.td"

def TileDialect : Dialect {
  let name = "tile";
  let cppNamespace = "::prefill::tile";
  let summary = "One kernel on tiles as SSA values, for no particular target";
  let description = [{
    A `tile.kernel` computes one tile of query rows. *Tiles* are statically shaped
    builtin tensors with value semantics, so `arith` and `math` ops work on them
    element by element; this dialect adds only what those lack: memory (views),
    iteration over an index, matrix products, row reductions, broadcasts and
    masks. Dimension 0 of a tile in the kernel's arithmetic is the query row.

    Nothing here names caches, registers, threads or warps. A target decides which
    tiles live where and which ops share a loop.
  }];
  let useDefaultTypePrinterParser = 1;
}

//===----------------------------------------------------------------------===//
// Types
//===----------------------------------------------------------------------===//

class Tile_Type<string name, string mnem> : TypeDef<TileDialect, name> {
  let mnemonic = mnem;
}

def Tile_ViewType : Tile_Type<"View", "view"> {
  let summary = "A one- or two-dimensional piece of memory";
  let description = [{
    `!tile.view<?x64xf16>`: rows of 64 elements; how many rows there are and how
    far apart they lie is known when the kernel runs (`?`). Memory outside a view
    is never touched: loads give zero there and stores do nothing. A view may be
    absent altogether (a null output): stores to it do nothing.
  }];
  let parameters = (ins ArrayRefParameter<"int64_t">:$shape,
                        "::mlir::Type":$elementType);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    int64_t getRank() const { return getShape().size(); }
    /// The dimension that `keys` select along: the last dynamic one, or -1.
    int64_t getKeyDim() const;
  }];
}

def Tile_IndexType : Tile_Type<"KeyIndex", "index"> {
  let summary = "Which keys a kernel visits, in tiles of `size` keys";
  let description = [{
    A list of aligned blocks of `size` keys, then a list of single keys
    ("columns") in groups of `size`. No key is visited twice. For some of its
    tiles an index promises that every key is visible to every row.
  }];
  let parameters = (ins "int64_t":$size);
  let assemblyFormat = "`<` $size `>`";
  let genVerifyDecl = 1;
}

def Tile_KeysType : Tile_Type<"Keys", "keys"> {
  let summary = "One tile of an index: up to `size` keys";
  let description = [{
    Keys of the tile that do not exist (past the last key, or skipped by the
    index) are *dead*: loads of them give unspecified values without touching
    memory outside the view, `tile.mask` hides them, and `tile.dot` leaves them
    out when it reduces over keys.
  }];
  let parameters = (ins "int64_t":$size);
  let assemblyFormat = "`<` $size `>`";
  let genVerifyDecl = 1;
}

#endif
