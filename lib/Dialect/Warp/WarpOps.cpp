//===- WarpOps.cpp - Parsing and verification of warp ops -----------------===//

#include "mlir/Interfaces/FunctionImplementation.h"
#include "mlir/Interfaces/LoopLikeInterface.h"
#include "prefill/Dialect/Warp/Warp.h"
#include "llvm/ADT/TypeSwitch.h"

using namespace mlir;
using namespace prefill;
using namespace prefill::warp;

#define GET_OP_CLASSES
#include "prefill/Dialect/Warp/WarpOps.cpp.inc"

//===----------------------------------------------------------------------===//
// KernelOp
//===----------------------------------------------------------------------===//

ParseResult KernelOp::parse(OpAsmParser &parser, OperationState &result) {
  auto buildType = [](Builder &builder, ArrayRef<Type> inputs,
                      ArrayRef<Type> results,
                      function_interface_impl::VariadicFlag, std::string &) {
    return builder.getFunctionType(inputs, results);
  };
  return function_interface_impl::parseFunctionOp(
      parser, result, /*allowVariadic=*/false,
      getFunctionTypeAttrName(result.name), buildType,
      getArgAttrsAttrName(result.name), getResAttrsAttrName(result.name));
}

void KernelOp::print(OpAsmPrinter &printer) {
  function_interface_impl::printFunctionOp(
      printer, *this, /*isVariadic=*/false, getFunctionTypeAttrName(),
      getArgAttrsAttrName(), getResAttrsAttrName());
}

/// A stage that is acquired must be committed, and one that is waited for
/// released, by the same number: else the ring's other side waits for ever.
static LogicalResult verifyRing(AllocOp alloc) {
  Value ring = alloc.getRing();
  bool acquires = false, commits = false, waits = false;
  Operation *firstAcquire = nullptr, *firstWait = nullptr;
  for (Operation *user : ring.getUsers()) {
    if (isa<AcquireOp>(user)) {
      acquires = true;
      firstAcquire = user;
    } else if (isa<WaitOp>(user)) {
      waits = true;
      firstWait = user;
    } else if (isa<CommitOp>(user)) {
      commits = true;
    }
  }
  if (acquires && !commits)
    return firstAcquire->emitOpError("of a ring that nobody commits");
  if (waits && !commits)
    return firstWait->emitOpError("for a ring that nobody commits: it never "
                                  "ends");
  // In a loop a stage comes round again, and must be released for that.
  for (Operation *user : ring.getUsers()) {
    auto wait = dyn_cast<WaitOp>(user);
    if (!wait || !(wait->getParentOfType<LoopLikeOpInterface>() ||
                   wait->getParentOfType<ForWorkOp>()))
      continue;
    bool released = llvm::any_of(ring.getUsers(), [&](Operation *other) {
      auto release = dyn_cast<ReleaseOp>(other);
      return release && release->getBlock() == wait->getBlock() &&
             release.getNumber() == wait.getNumber() &&
             wait->isBeforeInBlock(release);
    });
    if (!released)
      return wait.emitOpError("in a loop is not followed by a release of the "
                              "same tile in its block");
  }
  return success();
}

/// Without barriers of their own (before architecture 90), stages are free
/// again because all warps meet between the last read and the next write: at a
/// wait after the release.
static LogicalResult verifyAcquire(AcquireOp acquire) {
  Operation *op = acquire;
  while (op && !isa<LoopLikeOpInterface>(op->getParentOp())) {
    op = op->getParentOp();
    if (isa<KernelOp>(op))
      return success();
  }
  for (Operation *before = op->getPrevNode(); before;
       before = before->getPrevNode()) {
    if (isa<WaitOp>(before))
      return success();
    auto release = dyn_cast<ReleaseOp>(before);
    if (release && release.getRing() == acquire.getRing())
      break;
  }
  return acquire.emitOpError(
      "in a loop needs a warp.wait between it and the release of its ring");
}

LogicalResult KernelOp::verify() {
  if (!getResultTypes().empty())
    return emitOpError("has no results; it stores to views");
  int64_t warps = getSchedule().getWarps();
  for (auto [number, type] : llvm::enumerate(getArgumentTypes()))
    if (!getArgAttrOfType<StringAttr>(number, tile::kFieldAttr))
      return emitOpError("argument ")
             << number << " has no " << tile::kFieldAttr;
  WalkResult walk = getBody().walk([&](Operation *op) {
    if (auto alloc = dyn_cast<AllocOp>(op))
      if (failed(verifyRing(alloc)))
        return WalkResult::interrupt();
    if (auto acquire = dyn_cast<AcquireOp>(op))
      if (!acquire->getParentOfType<RolesOp>() &&
          failed(verifyAcquire(acquire)))
        return WalkResult::interrupt();
    for (Value result : op->getResults()) {
      std::optional<FragKind> kind = getFragKind(result.getType());
      if (!kind) {
        if (!isa<RankedTensorType>(result.getType()))
          continue;
        op->emitOpError("gives a tile of which nobody says how it lies in "
                        "registers (#warp.frag)");
        return WalkResult::interrupt();
      }
      auto type = cast<RankedTensorType>(result.getType());
      if (type.getRank() != (*kind == FragKind::Acc ? 2 : 1)) {
        op->emitOpError("gives a fragment of the wrong rank: ") << type;
        return WalkResult::interrupt();
      }
      if (*kind != FragKind::Col && type.getDimSize(0) % (16 * warps) != 0) {
        op->emitOpError("gives ")
            << type.getDimSize(0) << " rows, no multiple of 16 for " << warps
            << " warps";
        return WalkResult::interrupt();
      }
    }
    return WalkResult::advance();
  });
  return failure(walk.wasInterrupted());
}

/// Both sides go through the same tiles of query rows, or neither does, and
/// rings have one order of tiles.
static LogicalResult verifyWork(RolesOp roles) {
  auto copies = llvm::to_vector(roles.getCopy().getOps<ForWorkOp>());
  auto computes = llvm::to_vector(roles.getCompute().getOps<ForWorkOp>());
  if (copies.size() != computes.size() || copies.size() > 1)
    return roles.emitOpError("has ")
           << copies.size() << " warp.for_work that copy and "
           << computes.size() << " that compute: one of each, or none";
  Operation *outside = nullptr;
  if (!copies.empty())
    roles->walk([&](Operation *op) {
      if (isa<AcquireOp, CommitOp, WaitOp, ReleaseOp>(op) &&
          !op->getParentOfType<ForWorkOp>())
        outside = op;
    });
  if (outside)
    return outside->emitOpError("is outside of warp.for_work, which numbers "
                                "the tiles of rings");
  return success();
}

LogicalResult RolesOp::verify() {
  auto kernel = (*this)->getParentOfType<KernelOp>();
  const int64_t warps = kernel.getSchedule().getWarps();
  if (kernel.getSchedule().getArch() != 90)
    return emitOpError("needs architecture 90, not ")
           << kernel.getSchedule().getArch();
  if (warps != 8 && warps != 12)
    return emitOpError("has 8 or 12 computing warps, not ") << warps;
  for (int64_t count : {getCopyRegisters(), getComputeRegisters()})
    if (count < 24 || count > 256 || count % 8)
      return emitOpError("gives a thread a multiple of 8 registers from 24 to "
                         "256, not ")
             << count;
  const int64_t total =
      128 * getCopyRegisters() + 32 * warps * getComputeRegisters();
  if (total > 65536)
    return emitOpError("wants ") << total << " registers of 65536";
  Operation *wrong = nullptr;
  getCopy().walk([&](Operation *op) {
    if (isa<WaitOp, ReleaseOp, MmaOp, MmaIssueOp, MmaWaitOp, OrderWaitOp,
            OrderPassOp>(op))
      wrong = op;
  });
  if (wrong)
    return wrong->emitOpError("is no work of the copying warpgroup");
  getCompute().walk([&](Operation *op) {
    if (isa<AcquireOp, CopyOp, CommitOp>(op))
      wrong = op;
  });
  if (wrong)
    return wrong->emitOpError("is no work of the computing warpgroups");
  return verifyWork(*this);
}

/// The number of a ring's tile, for ops that have one.
static Value getTileNumber(Operation *op) {
  return llvm::TypeSwitch<Operation *, Value>(op)
      .Case<AcquireOp, CommitOp, WaitOp, ReleaseOp>(
          [](auto typed) { return typed.getNumber(); })
      .Default(Value());
}

/// Whether a value is made from one of the first two arguments of `work`.
static bool countsWork(Value value, ForWorkOp work) {
  llvm::SmallPtrSet<Value, 16> seen;
  SmallVector<Value> todo = {value};
  while (!todo.empty()) {
    Value next = todo.pop_back_val();
    if (!seen.insert(next).second)
      continue;
    if (next == work.getWork() || next == work.getFirst())
      return true;
    if (Operation *op = next.getDefiningOp())
      llvm::append_range(todo, op->getOperands());
  }
  return false;
}

LogicalResult ForWorkOp::verify() {
  auto kernel = (*this)->getParentOfType<KernelOp>();
  TypeRange types = getBody().getArgumentTypes();
  if (types.size() < 2 || !types[0].isInteger(32) || !types[1].isInteger(32) ||
      types.drop_front(2) != TypeRange(kernel.getArgumentTypes()))
    return emitOpError("takes two i32 and then what the kernel takes");
  Operation *wrong = nullptr;
  getBody().walk([&](Operation *op) {
    Value number = getTileNumber(op);
    if (number && !countsWork(number, *this))
      wrong = op;
  });
  if (wrong)
    return wrong->emitOpError("has the same number for all of warp.for_work's "
                              "tiles: its ring does not go on");
  for (Value argument : kernel.getBody().getArguments())
    for (Operation *user : argument.getUsers())
      if (getOperation()->isProperAncestor(user))
        return user->emitOpError("uses an argument of the kernel in "
                                 "warp.for_work, which has its own");
  return success();
}

//===----------------------------------------------------------------------===//
// The index and shared memory
//===----------------------------------------------------------------------===//

LogicalResult KeysOp::verify() {
  if (getIndex().getType().getSize() != getResult().getType().getSize())
    return emitOpError("index and keys differ in tile size");
  return success();
}

static LogicalResult verifySlot(Operation *op, RingType ring, SmemType slot,
                                SlotState state) {
  if (ring.getSlot(state) != slot)
    return op->emitOpError("gives a ")
           << ring.getSlot(state) << ", not a " << slot;
  return success();
}

LogicalResult AcquireOp::verify() {
  return verifySlot(*this, getRing().getType(), getSlot().getType(),
                    SlotState::Empty);
}

LogicalResult WaitOp::verify() {
  if (int64_t(getNewer()) < 0)
    return emitOpError("has a negative number of newer commits");
  return verifySlot(*this, getRing().getType(), getSlot().getType(),
                    SlotState::Full);
}

LogicalResult CopyOp::verify() {
  SmemType slot = getSlot().getType();
  tile::ViewType view = getView().getType();
  if (slot.getState() != SlotState::Empty)
    return emitOpError("writes to a stage that is not acquired");
  if (!getSlot().getDefiningOp<AcquireOp>())
    return emitOpError("writes to a stage that no warp.acquire gives");
  if (view.getRank() != 2 || view.getElementType() != slot.getElementType() ||
      view.getShape()[1] != slot.getCols() ||
      !ShapedType::isDynamic(view.getShape()[0]))
    return emitOpError("cannot fill ") << slot << " from " << view;
  if (getKeys() && getKeys().getType().getSize() != slot.getRows())
    return emitOpError("stage and keys differ in size");
  return success();
}

//===----------------------------------------------------------------------===//
// Matrix products
//===----------------------------------------------------------------------===//

/// Checks operands and result of a product; what is common to both forms.
static LogicalResult verifyProduct(Operation *op, Type a, SmemType b, Value acc,
                                   bool transposeB, RankedTensorType result) {
  int64_t rows, inner;
  Type element;
  if (auto smem = dyn_cast<SmemType>(a)) {
    if (smem.getState() != SlotState::Full)
      return op->emitOpError("reads a stage that was not waited for");
    rows = smem.getRows();
    inner = smem.getCols();
    element = smem.getElementType();
  } else if (getFragKind(a) == FragKind::Acc) {
    auto tensor = cast<RankedTensorType>(a);
    rows = tensor.getDimSize(0);
    inner = tensor.getDimSize(1);
    element = tensor.getElementType();
  } else {
    return op->emitOpError("left operand is a stage or an acc fragment, not ")
           << a;
  }
  if (b.getState() != SlotState::Full)
    return op->emitOpError("reads a stage that was not waited for");
  if (element != b.getElementType())
    return op->emitOpError("multiplies ")
           << element << " by " << b.getElementType();
  int64_t bInner = transposeB ? b.getCols() : b.getRows();
  int64_t cols = transposeB ? b.getRows() : b.getCols();
  if (inner != bInner)
    return op->emitOpError("inner dimensions are ")
           << inner << " and " << bInner;
  if (inner % 16 || cols % 16)
    return op->emitOpError("multiplies in pieces of 16, not ")
           << inner << "x" << cols;
  if (getFragKind(result) != FragKind::Acc || !result.getElementType().isF32())
    return op->emitOpError("result is an f32 acc fragment");
  if (result.getDimSize(0) != rows || result.getDimSize(1) != cols)
    return op->emitOpError("result is not of shape ") << rows << "x" << cols;
  if (acc && acc.getType() != result)
    return op->emitOpError("accumulator and result differ in type");
  return success();
}

LogicalResult MmaOp::verify() {
  return verifyProduct(*this, getA().getType(), getB().getType(), getAcc(),
                       getTransposeB(),
                       cast<RankedTensorType>(getResult().getType()));
}

LogicalResult MmaIssueOp::verify() {
  if (failed(verifyProduct(*this, getA().getType(), getB().getType(), getAcc(),
                           getTransposeB(), getResult().getType().getTile())))
    return failure();
  if (auto kernel = (*this)->getParentOfType<KernelOp>())
    if (kernel.getSchedule().getArch() != 90)
      return emitOpError("needs architecture 90, not ")
             << kernel.getSchedule().getArch();
  if (!getResult().hasOneUse())
    return emitOpError("result must be waited for exactly once");
  // Whatever happens between issue and wait must be known to be harmless;
  // across blocks it is not.
  if ((*getResult().user_begin())->getBlock() != (*this)->getBlock())
    return emitOpError("is waited for in another block");
  return success();
}

LogicalResult MmaWaitOp::verify() {
  if (getResult().getType() != getPending().getType().getTile())
    return emitOpError("gives a ") << getPending().getType().getTile();
  auto issue = getPending().getDefiningOp<MmaIssueOp>();
  if (!issue)
    return emitOpError("waits for what no warp.mma_issue started");
  int64_t newer = 0;
  for (Operation *op = issue->getNextNode(); op && op != getOperation();
       op = op->getNextNode())
    newer += isa<MmaIssueOp>(op);
  if (newer < int64_t(getNewer()))
    return emitOpError("lets ")
           << getNewer() << " newer products run, but only " << newer
           << " were issued since: it would not wait for its own";
  return success();
}
