//===- WarpDialect.td - A GPU schedule of one kernel -------*- tablegen -*-===//
#ifndef PREFILL_DIALECT_WARP_WARPDIALECT_TD
#define PREFILL_DIALECT_WARP_WARPDIALECT_TD

include "mlir/IR/OpBase.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/BuiltinAttributeInterfaces.td"
include "mlir/IR/EnumAttr.td"

def WarpDialect : Dialect {
  let name = "warp";
  let cppNamespace = "::prefill::warp";
  let summary = "The schedule of one kernel on a GPU";
  let description = [{
    A `warp.kernel` is a `tile.kernel` of which is decided: which tiles lie in
    shared memory and in how many stages, when they are copied and waited for,
    which warps do what, and how tiles lie in registers. See docs/Warp.md.

    Tiles in registers (*fragments*) are builtin tensors whose encoding,
    `#warp.frag<...>`, says who holds which element, so `arith`, `math` and the
    row ops of `tile` work on them. Tiles in shared memory are `!warp.smem`; the
    type says whether a tile may be written (`empty`) or read (`full`). A matrix
    product that is still being computed is a `!warp.pending`: no op but
    `warp.mma_wait` takes one.
  }];
  let useDefaultAttributePrinterParser = 1;
  let useDefaultTypePrinterParser = 1;
  let dependentDialects = ["::prefill::tile::TileDialect"];
}

//===----------------------------------------------------------------------===//
// Attributes
//===----------------------------------------------------------------------===//

def Warp_FragKind : I32EnumAttr<"FragKind", "How a tile lies in registers", [
    I32EnumAttrCase<"Acc", 0, "acc">, I32EnumAttrCase<"Row", 1, "row">,
    I32EnumAttrCase<"Col", 2, "col">]> {
  let cppNamespace = "::prefill::warp";
  let genSpecializedAttr = 0;
}

def Warp_FragAttr : AttrDef<WarpDialect, "Frag"> {
  let mnemonic = "frag";
  let summary = "Who holds which element of a tile";
  let description = [{
    Of the `M` rows of a kernel's tiles, warp `w` of `W` computing ones holds rows
    `w M/W` up to `(w+1) M/W`, in groups of 16.

    * `acc` (two-dimensional): lane `4 g + t` holds, of every group and of every 8
      columns, columns `2 t` and `2 t + 1` of rows `g` and `g + 8`. These are the
      accumulators of mma.sync m16n8k16 and of wgmma m64nNk16, for any N that is
      a multiple of 8; 16-bit elements, two a register, are the left operand of
      both.
    * `row`: one number a row of an `acc` tile, in every lane that holds elements
      of the row.
    * `col`: one number a column, likewise.
  }];
  let parameters = (ins EnumParameter<Warp_FragKind>:$kind);
  let assemblyFormat = "`<` $kind `>`";
}

def Warp_SlotState : I32EnumAttr<"SlotState", "What a shared-memory tile is for", [
    I32EnumAttrCase<"Empty", 0, "empty">, I32EnumAttrCase<"Full", 1, "full">]> {
  let cppNamespace = "::prefill::warp";
  let genSpecializedAttr = 0;
}

def Warp_KeyOrder : I32EnumAttr<"KeyOrder", "Where the tiles of an index come from", [
    I32EnumAttrCase<"Dense", 0, "dense">, I32EnumAttrCase<"Lists", 1, "lists">,
    I32EnumAttrCase<"Chunk", 2, "chunk">]> {
  let cppNamespace = "::prefill::warp";
  let genSpecializedAttr = 0;
}

def Warp_KeyPart : I32EnumAttr<"KeyPart", "What is known of a tile of an index", [
    I32EnumAttrCase<"Any", 0, "any">, I32EnumAttrCase<"Block", 1, "block">,
    I32EnumAttrCase<"Columns", 2, "columns">]> {
  let cppNamespace = "::prefill::warp";
}

def Warp_ScheduleAttr : AttrDef<WarpDialect, "Schedule"> {
  let mnemonic = "schedule";
  let summary = "What of a kernel's schedule holds for all of it";
  let description = [{
    `arch` is the number of an NVIDIA architecture (80, 90). `warps` compute.
    `index` says whether the launch names the tiles to visit (`lists`: blocks,
    then gathered columns), the kernel visits all that any row may see, last
    first (`dense`), or those of the block's own chunk of keys (`chunk`: sums
    kernels, whose launch is a prefill_cuda_index).
  }];
  let parameters = (ins "int64_t":$arch, "int64_t":$warps,
                        EnumParameter<Warp_KeyOrder>:$index);
  let assemblyFormat = [{
    `<` `arch` `=` $arch `,` `warps` `=` $warps `,` `index` `=` $index `>`
  }];
  let genVerifyDecl = 1;
}

//===----------------------------------------------------------------------===//
// Types
//===----------------------------------------------------------------------===//

class Warp_Type<string name, string mnem> : TypeDef<WarpDialect, name> {
  let mnemonic = mnem;
}

def Warp_SmemType : Warp_Type<"Smem", "smem"> {
  let summary = "A tile in shared memory";
  let description = [{
    `!warp.smem<64x128xf16, full>`. Rows are cut into pieces of 128 bytes; piece
    after piece, all rows' pieces lie one after the other, and within a piece the
    16-byte chunk `c` of row `r` lies at `c ^ (r & 7)`. That is TMA's
    SWIZZLE_128B, what ldmatrix reads without bank conflicts, and a canonical
    layout of wgmma descriptors. The last piece may be partly unused.
  }];
  let parameters = (ins "int64_t":$rows, "int64_t":$cols,
                        "::mlir::Type":$elementType,
                        EnumParameter<Warp_SlotState>:$state);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    int64_t getBytes() const { return (getCols() + 63) / 64 * getRows() * 128; }
  }];
}

def Warp_RingType : Warp_Type<"Ring", "ring"> {
  let summary = "Stages of shared memory that are filled and read in turn";
  let description = [{
    `!warp.ring<2, 64x128xf16>`: two stages. The tile with number `i` lies in stage
    `i mod 2`.
  }];
  let parameters = (ins "int64_t":$stages, "int64_t":$rows, "int64_t":$cols,
                        "::mlir::Type":$elementType);
  let hasCustomAssemblyFormat = 1;
  let genVerifyDecl = 1;
  let extraClassDeclaration = [{
    /// A stage's tile.
    SmemType getSlot(SlotState state) const {
      return SmemType::get(getContext(), getRows(), getCols(), getElementType(),
                           state);
    }
    int64_t getBytes() const {
      return getStages() * getSlot(SlotState::Empty).getBytes();
    }
  }];
}

def Warp_PendingType : Warp_Type<"Pending", "pending"> {
  let summary = "A matrix product in flight";
  let parameters = (ins "::mlir::RankedTensorType":$tile);
  let assemblyFormat = "`<` $tile `>`";
}

#endif
