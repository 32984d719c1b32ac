//===- WarpOps.td - Operations of the warp dialect ---------*- tablegen -*-===//
#ifndef PREFILL_DIALECT_WARP_WARPOPS_TD
#define PREFILL_DIALECT_WARP_WARPOPS_TD

include "prefill/Dialect/Warp/WarpDialect.td"
include "prefill/Dialect/Tile/TileDialect.td"
include "mlir/Interfaces/FunctionInterfaces.td"
include "mlir/Interfaces/SideEffectInterfaces.td"
include "mlir/IR/SymbolInterfaces.td"

class Warp_Op<string mnemonic, list<Trait> traits = []>
    : Op<WarpDialect, mnemonic, traits>;

def Warp_Fragment : StaticShapeTensorOf<[AnyFloat]>;

//===----------------------------------------------------------------------===//
// Structure
//===----------------------------------------------------------------------===//

def Warp_KernelOp : Warp_Op<"kernel",
    [FunctionOpInterface, IsolatedFromAbove, Symbol, HasParent<"::mlir::ModuleOp">]> {
  let summary = "One tile of query rows, by one thread block";
  let description = [{
    Arguments are those of the `tile.kernel` it comes from, with the same
    `tile.field`s; the lowering computes them from the launch's argument block
    (runtime/include/prefill/cuda_abi.h) and the block's number.
  }];
  let arguments = (ins SymbolNameAttr:$sym_name,
                       TypeAttrOf<FunctionType>:$function_type,
                       Warp_ScheduleAttr:$schedule,
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

def Warp_ReturnOp : Warp_Op<"return", [Pure, Terminator, HasParent<"KernelOp">]> {
  let summary = "End of a kernel";
  let assemblyFormat = "attr-dict";
}

//===----------------------------------------------------------------------===//
// The index
//===----------------------------------------------------------------------===//

def Warp_CountOp : Warp_Op<"count", [Pure]> {
  let summary = "How many tiles an index has";
  let arguments = (ins Tile_IndexType:$index);
  let results = (outs I32:$result);
  let assemblyFormat = "$index attr-dict `:` type($index)";
}

def Warp_KeysOp : Warp_Op<"keys", [Pure]> {
  let summary = "Tile number `number` of an index";
  let arguments = (ins Tile_IndexType:$index, I32:$number);
  let results = (outs Tile_KeysType:$result);
  let assemblyFormat = [{
    $index `[` $number `]` attr-dict `:` type($index) `->` type($result)
  }];
  let hasVerifier = 1;
}

//===----------------------------------------------------------------------===//
// Shared memory
//===----------------------------------------------------------------------===//

def Warp_AllocOp : Warp_Op<"alloc", [HasParent<"KernelOp">,
                                     MemoryEffects<[MemAlloc]>]> {
  let summary = "A ring in shared memory, for the kernel's whole life";
  let results = (outs Warp_RingType:$ring);
  let assemblyFormat = "attr-dict `:` type($ring)";
}

def Warp_AcquireOp : Warp_Op<"acquire", [MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "The stage for tile `number`, once nobody reads it any more";
  let description = [{
    Waits until tile `number - stages` has been released by all readers. Must be
    followed by `warp.commit` of the same number, in the same block or around it.
  }];
  let arguments = (ins Warp_RingType:$ring, I32:$number);
  let results = (outs Warp_SmemType:$slot);
  let assemblyFormat = [{
    $ring `[` $number `]` attr-dict `:` type($ring) `->` type($slot)
  }];
  let hasVerifier = 1;
}

def Warp_CopyOp : Warp_Op<"copy", [MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "Starts to copy rows of a view into an empty stage";
  let description = [{
    The rows are those of `keys`, or the first ones. Rows outside the view and
    dead keys become zero. The data is there for who waits for the tile.
  }];
  let arguments = (ins Tile_ViewType:$view, Optional<Tile_KeysType>:$keys,
                       Warp_SmemType:$slot);
  let assemblyFormat = [{
    $view (`[` $keys^ `]`)? `to` $slot attr-dict `:` type($view)
    (`[` type($keys)^ `]`)? `to` type($slot)
  }];
  let hasVerifier = 1;
}

def Warp_CommitOp : Warp_Op<"commit", [MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "Tile `number` is complete once all copies so far are";
  let arguments = (ins Warp_RingType:$ring, I32:$number);
  let assemblyFormat = "$ring `[` $number `]` attr-dict `:` type($ring)";
}

def Warp_WaitOp : Warp_Op<"wait", [MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "Tile `number`, once it is complete";
  let description = [{
    `newer` is the number of commits, of all rings, after that of this tile; where
    completion has no barrier of its own (cp.async) it says how many groups of
    copies may be under way. All computing warps meet here: what they released
    before may be acquired after it.
  }];
  let arguments = (ins Warp_RingType:$ring, I32:$number, I64Attr:$newer);
  let results = (outs Warp_SmemType:$slot);
  let assemblyFormat = [{
    $ring `[` $number `]` `newer` `=` $newer attr-dict `:` type($ring) `->`
    type($slot)
  }];
  let hasVerifier = 1;
}

def Warp_ReleaseOp : Warp_Op<"release", [MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "Tile `number` is not read any more";
  let arguments = (ins Warp_RingType:$ring, I32:$number);
  let assemblyFormat = "$ring `[` $number `]` attr-dict `:` type($ring)";
}

//===----------------------------------------------------------------------===//
// Matrix products
//===----------------------------------------------------------------------===//

def Warp_MmaOp : Warp_Op<"mma", [MemoryEffects<[MemRead]>]> {
  let summary = "Matrix product of 16-bit tiles, summed in fp32, by each warp";
  let description = [{
    `a` (M x K) is a full stage or an `acc` fragment, `b` a full stage: K x N, or
    N x K with `transpose_b`. The result is an `acc` fragment.
  }];
  let arguments = (ins AnyType:$a, Warp_SmemType:$b,
                       Optional<Warp_Fragment>:$acc, UnitAttr:$transpose_b);
  let results = (outs Warp_Fragment:$result);
  let assemblyFormat = [{
    $a `,` $b (`acc` $acc^ `:` type($acc))? (`transpose_b` $transpose_b^)? attr-dict
    `:` type($a) `,` type($b) `->` type($result)
  }];
  let hasVerifier = 1;
}

def Warp_MmaIssueOp : Warp_Op<"mma_issue", [MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "Starts a matrix product by a warpgroup";
  let description = [{
    As `warp.mma`, but the result is pending. Every issue is a group of its own
    with a fence before it, so that registers written before it are seen.
  }];
  let arguments = (ins AnyType:$a, Warp_SmemType:$b,
                       Optional<Warp_Fragment>:$acc, UnitAttr:$transpose_b);
  let results = (outs Warp_PendingType:$result);
  let assemblyFormat = [{
    $a `,` $b (`acc` $acc^ `:` type($acc))? (`transpose_b` $transpose_b^)? attr-dict
    `:` type($a) `,` type($b) `->` type($result)
  }];
  let hasVerifier = 1;
}

def Warp_MmaWaitOp : Warp_Op<"mma_wait", [MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "The result of a pending product";
  let description = [{
    Products complete in the order of their issue. `newer` is how many were issued
    after this one and may still be under way.
  }];
  let arguments = (ins Warp_PendingType:$pending, I64Attr:$newer);
  let results = (outs Warp_Fragment:$result);
  let assemblyFormat = [{
    $pending `newer` `=` $newer attr-dict `:` type($pending) `->` type($result)
  }];
  let hasVerifier = 1;
}

#endif
