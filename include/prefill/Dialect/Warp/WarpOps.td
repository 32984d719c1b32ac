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

def Warp_RolesOp : Warp_Op<"roles", [HasParent<"KernelOp">, NoTerminator,
                                     MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "One warpgroup copies, the others compute";
  let description = [{
    The schedule's `warps` compute, in warpgroups of four; one more warpgroup
    runs the first region and fills the rings. Registers of a thread move from
    the copying to the computing warpgroups (setmaxnreg). Rings have barriers of
    their own: the two sides meet nowhere else.
  }];
  let arguments = (ins I32Attr:$copy_registers, I32Attr:$compute_registers);
  let regions = (region SizedRegion<1>:$copy, SizedRegion<1>:$compute);
  let assemblyFormat = [{
    `copy` $copy_registers $copy `compute` $compute_registers $compute attr-dict
  }];
  let hasVerifier = 1;
}

def Warp_ForWorkOp : Warp_Op<"for_work", [HasParent<"RolesOp">, SingleBlock,
                                          MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "The tiles of query rows that a persistent thread block takes";
  let description = [{
    A launch of fewer blocks than tiles. Blocks take tiles in an order that both
    roles know from the launch alone (cuda_abi.h), those with most to do first.
    The region's arguments are the number of the tile among the block's own, from
    0; the number of key tiles that went through the rings before; and, for this
    tile, what the kernel's arguments are elsewhere. Rings go on from tile to
    tile: their numbers count from the kernel's begin.
  }];
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "$body attr-dict";
  let hasVerifier = 1;
  let extraClassDeclaration = [{
    ::mlir::Value getWork() { return getBody().getArgument(0); }
    ::mlir::Value getFirst() { return getBody().getArgument(1); }
    /// What stands for the kernel's arguments.
    ::mlir::Block::BlockArgListType getKernelArguments() {
      return getBody().getArguments().drop_front(2);
    }
  }];
}

def Warp_NextWorkOp : Warp_Op<"next_work", [Pure, Terminator,
                                            HasParent<"ForWorkOp">]> {
  let summary = "Ends one tile of query rows";
  let description = [{
    `first` is what the next one begins with: how many key tiles have gone through
    the rings.
  }];
  let arguments = (ins I32:$first);
  let assemblyFormat = "$first attr-dict";
}

def Warp_IsFirstThreadOp : Warp_Op<"is_first_thread", [Pure]> {
  let summary = "Whether this is the first thread of the copying warpgroup";
  let results = (outs I1:$result);
  let assemblyFormat = "attr-dict";
}

def Warp_OrderWaitOp : Warp_Op<"order_wait", [MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "This computing warpgroup's turn to start products";
  let description = [{
    Warpgroups take turns, so that the exponentials of one lie over the products
    of another. `warp.order_pass` gives the turn on.
  }];
  let assemblyFormat = "attr-dict";
}

def Warp_OrderPassOp : Warp_Op<"order_pass", [MemoryEffects<[MemRead, MemWrite]>]> {
  let summary = "The next computing warpgroup's turn";
  let description = [{
    With `start`, the last warpgroup gives the first one its first turn; the
    others do nothing.
  }];
  let arguments = (ins UnitAttr:$start);
  let assemblyFormat = "(`start` $start^)? attr-dict";
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

def Warp_FullTilesOp : Warp_Op<"full_tiles", [Pure]> {
  let summary = "The tiles of an index that need no mask: from `begin` up to `end`";
  let description = [{
    Gathered columns come from tile `columns` on:
    0 <= begin <= end <= columns <= the index's count.
  }];
  let arguments = (ins Tile_IndexType:$index);
  let results = (outs I32:$begin, I32:$end, I32:$columns);
  let assemblyFormat = "$index attr-dict `:` type($index)";
}

def Warp_KeysOp : Warp_Op<"keys", [Pure]> {
  let summary = "Tile number `number` of an index";
  let description = [{
    `masked`: masks are needed, whatever the index says. Below `warp.roles` there
    may be one tile more than the index has; it has no keys. `part` says that it
    is known to be a block or gathered columns.
  }];
  let arguments = (ins Tile_IndexType:$index, I32:$number, UnitAttr:$masked,
                       DefaultValuedAttr<Warp_KeyPart, "KeyPart::Any">:$part);
  let results = (outs Tile_KeysType:$result);
  let assemblyFormat = [{
    $index `[` $number `]` (`masked` $masked^)? (`part` $part^)? attr-dict `:` type($index) `->` type($result)
  }];
  let hasVerifier = 1;
}

//===----------------------------------------------------------------------===//
// Shared memory
//===----------------------------------------------------------------------===//

def Warp_AllocOp : Warp_Op<"alloc", [HasParent<"KernelOp">,
                                     MemoryEffects<[MemAlloc]>]> {
  let summary = "A ring in shared memory, for the kernel's whole life";
  let description = [{
    `tma`: one thread fills a stage by TMA, from the tensor map of the view.
  }];
  let arguments = (ins UnitAttr:$tma);
  let results = (outs Warp_RingType:$ring);
  let assemblyFormat = "(`tma` $tma^)? attr-dict `:` type($ring)";
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
    copies may be under way. Then all computing warps meet here, and what they
    released before may be acquired after it. Below `warp.roles` a stage has a
    barrier for full and one for empty.
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
// Sums of rows
//===----------------------------------------------------------------------===//

def Warp_PartSumOp : Warp_Op<"part_sum", [Pure]> {
  let summary = "Sums of rows, of what each lane holds of them";
  let description = [{
    The four lanes that share a row hold different numbers, whose sum
    `warp.whole_sum` gives. What is linear may be done between the two.
  }];
  let arguments = (ins Warp_Fragment:$value);
  let results = (outs Warp_Fragment:$result);
  let assemblyFormat = "$value attr-dict `:` type($value) `->` type($result)";
}

def Warp_WholeSumOp : Warp_Op<"whole_sum", [Pure]> {
  let summary = "Sums over the lanes that share a row";
  let arguments = (ins Warp_Fragment:$part);
  let results = (outs Warp_Fragment:$result);
  let assemblyFormat = "$part attr-dict `:` type($part) `->` type($result)";
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
