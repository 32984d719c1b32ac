//===- TileOps.td - Operations of the tile dialect ---------*- tablegen -*-===//
#ifndef PREFILL_DIALECT_TILE_TILEOPS_TD
#define PREFILL_DIALECT_TILE_TILEOPS_TD

include "prefill/Dialect/Tile/TileDialect.td"
include "mlir/Interfaces/ControlFlowInterfaces.td"
include "mlir/Interfaces/FunctionInterfaces.td"
include "mlir/Interfaces/SideEffectInterfaces.td"
include "mlir/IR/SymbolInterfaces.td"

def Tile_ReduceKind : I32EnumAttr<"ReduceKind", "How a row is reduced", [
    I32EnumAttrCase<"Max", 0, "max">, I32EnumAttrCase<"Sum", 1, "sum">]> {
  let cppNamespace = "::prefill::tile";
}

class Tile_Op<string mnemonic, list<Trait> traits = []>
    : Op<TileDialect, mnemonic, traits>;

def Tile_Tile : StaticShapeTensorOf<[AnyFloat, AnySignlessInteger]>;
def Tile_FloatTile : StaticShapeTensorOf<[AnyFloat]>;

//===----------------------------------------------------------------------===//
// Structure
//===----------------------------------------------------------------------===//

def Tile_KernelOp : Tile_Op<"kernel",
    [FunctionOpInterface, IsolatedFromAbove, Symbol, HasParent<"::mlir::ModuleOp">]> {
  let summary = "One tile of query rows";
  let description = [{
    Arguments are views, one index, and scalars. The argument attribute
    `tile.field` names the field of the call's argument block that the argument is
    bound to (runtime/include/prefill/kernel_abi.h); `abi` names the block:
    `attention` (prefill_tile_args), `score` (prefill_score_args) or `sums`
    (prefill_cuda_index, GPUs only).

    ```mlir
    tile.kernel @k(%q: !tile.view<?x64xf32> {tile.field = "q"}, ...)
        attributes {abi = "attention"} {
      ...
      tile.return
    }
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name,
                       TypeAttrOf<FunctionType>:$function_type,
                       StrAttr:$abi,
                       OptionalAttr<DictArrayAttr>:$arg_attrs,
                       OptionalAttr<DictArrayAttr>:$res_attrs);
  let regions = (region SizedRegion<1>:$body);
  let hasCustomAssemblyFormat = 1;
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    /// FunctionOpInterface.
    ::llvm::ArrayRef<::mlir::Type> getArgumentTypes() {
      return getFunctionType().getInputs();
    }
    ::llvm::ArrayRef<::mlir::Type> getResultTypes() {
      return getFunctionType().getResults();
    }
    ::mlir::Region *getCallableRegion() { return &getBody(); }
  }];
}

def Tile_ReturnOp : Tile_Op<"return", [Pure, Terminator, HasParent<"KernelOp">]> {
  let summary = "End of a kernel";
  let assemblyFormat = "attr-dict";
}

def Tile_ForTilesOp : Tile_Op<"for_tiles", [SingleBlock, RecursiveMemoryEffects]> {
  let summary = "Visits the tiles of an index in order, carrying values";
  let description = [{
    ```mlir
    %m, %l = tile.for_tiles %keys in %index iter_args(%a = %m0, %b = %l0)
        : !tile.index<64> -> (tensor<64xf32>, tensor<64xf32>) {
      ...
      tile.yield %x, %y : tensor<64xf32>, tensor<64xf32>
    }
    ```
  }];
  let arguments = (ins Tile_IndexType:$index, Variadic<AnyType>:$inits);
  let results = (outs Variadic<AnyType>:$results);
  let regions = (region SizedRegion<1>:$body);
  let hasCustomAssemblyFormat = 1;
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    ::mlir::BlockArgument getKeys() { return getBody().getArgument(0); }
    ::llvm::ArrayRef<::mlir::BlockArgument> getIterArgs() {
      return getBody().getArguments().drop_front();
    }
    ::mlir::Operation *getYield() { return getBody().front().getTerminator(); }
  }];
  let skipDefaultBuilders = 1;
  let builders = [OpBuilder<(ins "::mlir::Value":$index,
                                 "::mlir::ValueRange":$inits)>];
}

def Tile_YieldOp : Tile_Op<"yield", [Pure, Terminator, ReturnLike,
    ParentOneOf<["ForTilesOp", "MaskOp"]>]> {
  let summary = "Values of the next round, or of a mask's predicate";
  let arguments = (ins Variadic<AnyType>:$values);
  let assemblyFormat = "attr-dict ($values^ `:` type($values))?";
}

def Tile_NeedOp : Tile_Op<"need", [HasParent<"ForTilesOp">]> {
  let summary = "Ends a round that no row has need of";
  let description = [{
    Unless one of the numbers is not negative, or is no number, the round of
    `for_tiles` ends here and its carried values stay as they are.
  }];
  let arguments = (ins Tile_FloatTile:$value);
  let assemblyFormat = "$value attr-dict `:` type($value)";
  let hasVerifier = 1;
}

//===----------------------------------------------------------------------===//
// Memory
//===----------------------------------------------------------------------===//

def Tile_LoadOp : Tile_Op<"load", [MemoryEffects<[MemRead]>]> {
  let summary = "A tile of a view: from row 0, or at the keys of an index's tile";
  let description = [{
    Without keys, the tile starts at the view's origin and elements outside the
    view are zero. With keys, they select along the view's last dynamic
    dimension.

    ```mlir
    %q = tile.load %qview : !tile.view<?x64xf32> -> tensor<64x64xf32>
    %k = tile.load %kview[%keys] : !tile.view<?x64xf32>[!tile.keys<32>]
           -> tensor<32x64xf32>
    ```
  }];
  let arguments = (ins Tile_ViewType:$view, Optional<Tile_KeysType>:$keys);
  let results = (outs Tile_Tile:$result);
  let assemblyFormat = [{
    $view (`[` $keys^ `]`)? attr-dict `:` type($view) (`[` type($keys)^ `]`)?
    `->` type($result)
  }];
  let hasVerifier = 1;
}

def Tile_StoreOp : Tile_Op<"store", [MemoryEffects<[MemWrite]>]> {
  let summary = "Writes a tile to a view; elements outside the view are dropped";
  let arguments = (ins Tile_Tile:$value, Tile_ViewType:$view,
                       Optional<Tile_KeysType>:$keys);
  let assemblyFormat = [{
    $value `,` $view (`[` $keys^ `]`)? attr-dict `:` type($value) `,` type($view)
    (`[` type($keys)^ `]`)?
  }];
  let hasVerifier = 1;
}

def Tile_StoreSumsOp : Tile_Op<"store_sums", [MemoryEffects<[MemWrite]>]> {
  let summary = "Writes the sums of a tile's columns and diagonals";
  let description = [{
    Column c's sum goes to the element of `columns` that its key numbers. Element
    r - c + N - 1 of row b of `diagonals` becomes the sum over the diagonal of row
    r and column c; the tile is the one of the N keys from b N on. Keys are those
    of an aligned block. The order of additions is fixed.

    ```mlir
    tile.store_sums %p, %columns, %diagonals[%t] : tensor<64x64xf32>,
        !tile.view<?xf32>, !tile.view<?x128xf32>[!tile.keys<64>]
    ```
  }];
  let arguments = (ins Tile_FloatTile:$value, Tile_ViewType:$columns,
                       Tile_ViewType:$diagonals, Tile_KeysType:$keys);
  let assemblyFormat = [{
    $value `,` $columns `,` $diagonals `[` $keys `]` attr-dict `:` type($value) `,`
    type($columns) `,` type($diagonals) `[` type($keys) `]`
  }];
  let hasVerifier = 1;
}

//===----------------------------------------------------------------------===//
// Computation
//===----------------------------------------------------------------------===//

def Tile_DotOp : Tile_Op<"dot", [Pure]> {
  let summary = "Matrix product in fp32";
  let description = [{
    `a` is M x K. `b` is K x N, or N x K with `transpose_b`. The result is M x N,
    plus `acc` where given. Element types may differ; products and sums are fp32.
  }];
  let arguments = (ins Tile_FloatTile:$a, Tile_FloatTile:$b,
                       Optional<Tile_FloatTile>:$acc, UnitAttr:$transpose_b);
  let results = (outs Tile_FloatTile:$result);
  let assemblyFormat = [{
    $a `,` $b (`acc` $acc^ `:` type($acc))? (`transpose_b` $transpose_b^)? attr-dict
    `:` type($a) `,` type($b) `->` type($result)
  }];
  let hasVerifier = 1;
}

def Tile_ReduceRowOp : Tile_Op<"reduce_row", [Pure]> {
  let summary = "Reduces every row of a tile to one number";
  let description = [{
    `max` ignores NaNs and starts at -inf; `sum` starts at 0.
  }];
  let arguments = (ins Tile_ReduceKind:$kind, Tile_FloatTile:$value);
  let results = (outs Tile_FloatTile:$result);
  let assemblyFormat = "$kind $value attr-dict `:` type($value) `->` type($result)";
  let hasVerifier = 1;
}

def Tile_BroadcastOp : Tile_Op<"broadcast", [Pure]> {
  let summary = "Repeats a scalar, or a vector along one dimension";
  let description = [{
    `dims` says where the source's dimension goes: `[]` for a scalar, `[0]` for one
    number a row (repeated along the row), `[1]` for one number a column.
  }];
  let arguments = (ins AnyType:$source, DenseI64ArrayAttr:$dims);
  let results = (outs Tile_Tile:$result);
  let assemblyFormat = [{
    $source `dims` `=` $dims attr-dict `:` type($source) `->` type($result)
  }];
  let hasVerifier = 1;
}

def Tile_RowsOp : Tile_Op<"rows", [Pure]> {
  let summary = "The number of each row in the tile: 0, 1, 2, ...";
  let results = (outs Tile_Tile:$result);
  let assemblyFormat = "attr-dict `:` type($result)";
  let hasVerifier = 1;
}

def Tile_PositionsOp : Tile_Op<"positions", [Pure]> {
  let summary = "The number of each key of an index's tile; unspecified where dead";
  let arguments = (ins Tile_KeysType:$keys);
  let results = (outs Tile_Tile:$result);
  let assemblyFormat = "$keys attr-dict `:` type($keys) `->` type($result)";
  let hasVerifier = 1;
}

def Tile_MaskOp : Tile_Op<"mask",
    [SingleBlock, RecursiveMemoryEffects, AllTypesMatch<["scores", "result"]>]> {
  let summary = "Makes invisible scores -inf";
  let description = [{
    Scores of dead keys, and scores for which the region yields false, become
    -inf. The region has no effects and need not be evaluated on tiles that the
    index promises to be wholly visible.

    ```mlir
    %masked = tile.mask %s, %keys : tensor<64x64xf32>, !tile.keys<64> {
      %pos = tile.positions %keys : !tile.keys<64> -> tensor<64xi32>
      ...
      tile.yield %visible : tensor<64x64xi1>
    }
    ```
  }];
  let arguments = (ins Tile_FloatTile:$scores, Tile_KeysType:$keys);
  let results = (outs Tile_FloatTile:$result);
  let regions = (region SizedRegion<1>:$predicate);
  let assemblyFormat = [{
    $scores `,` $keys attr-dict `:` type($scores) `,` type($keys) $predicate
  }];
  let hasVerifier = 1;
}

#endif
