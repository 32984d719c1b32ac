// RUN: prefill-opt %s -split-input-file -verify-diagnostics

// Misuse of rings, stages and pending products.

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"}, %keys: !tile.index<64> {tile.field = "keys"})
    attributes {schedule = #warp.schedule<arch = 80, warps = 4, index = dense>} {
  %ring = warp.alloc : !warp.ring<2, 64x64xf16>
  %c0 = arith.constant 0 : i32
  %c1 = arith.constant 1 : i32
  %n = warp.count %keys : !tile.index<64>
  %e = warp.acquire %ring[%c0] : !warp.ring<2, 64x64xf16> -> !warp.smem<64x64xf16, empty>
  warp.commit %ring[%c0] : !warp.ring<2, 64x64xf16>
  // expected-error@+1 {{reads a stage that was not waited for}}
  %s = warp.mma %e, %e transpose_b : !warp.smem<64x64xf16, empty>, !warp.smem<64x64xf16, empty> -> tensor<64x64xf32, #warp.frag<acc>>
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"}, %keys: !tile.index<64> {tile.field = "keys"})
    attributes {schedule = #warp.schedule<arch = 80, warps = 4, index = dense>} {
  %ring = warp.alloc : !warp.ring<2, 64x64xf16>
  %c0 = arith.constant 0 : i32
  %c1 = arith.constant 1 : i32
  %n = warp.count %keys : !tile.index<64>
  warp.commit %ring[%c0] : !warp.ring<2, 64x64xf16>
  %f = warp.wait %ring[%c0] newer = 0 : !warp.ring<2, 64x64xf16> -> !warp.smem<64x64xf16, full>
  // expected-error@+1 {{writes to a stage that is not acquired}}
  warp.copy %q to %f : !tile.view<?x64xf16> to !warp.smem<64x64xf16, full>
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"}, %keys: !tile.index<64> {tile.field = "keys"})
    attributes {schedule = #warp.schedule<arch = 80, warps = 4, index = dense>} {
  %ring = warp.alloc : !warp.ring<2, 64x64xf16>
  %c0 = arith.constant 0 : i32
  %c1 = arith.constant 1 : i32
  %n = warp.count %keys : !tile.index<64>
  // expected-error@+1 {{of a ring that nobody commits}}
  %e = warp.acquire %ring[%c0] : !warp.ring<2, 64x64xf16> -> !warp.smem<64x64xf16, empty>
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"}, %keys: !tile.index<64> {tile.field = "keys"})
    attributes {schedule = #warp.schedule<arch = 80, warps = 4, index = dense>} {
  %ring = warp.alloc : !warp.ring<2, 64x64xf16>
  %c0 = arith.constant 0 : i32
  %c1 = arith.constant 1 : i32
  %n = warp.count %keys : !tile.index<64>
  // expected-error@+1 {{for a ring that nobody commits: it never ends}}
  %f = warp.wait %ring[%c0] newer = 0 : !warp.ring<2, 64x64xf16> -> !warp.smem<64x64xf16, full>
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"}, %keys: !tile.index<64> {tile.field = "keys"})
    attributes {schedule = #warp.schedule<arch = 80, warps = 4, index = dense>} {
  %ring = warp.alloc : !warp.ring<2, 64x64xf16>
  %c0 = arith.constant 0 : i32
  %c1 = arith.constant 1 : i32
  %n = warp.count %keys : !tile.index<64>
  warp.commit %ring[%c0] : !warp.ring<2, 64x64xf16>
  // expected-error@+2 {{in a loop is not followed by a release of the same tile in its block}}
  scf.for %i = %c0 to %n step %c1 : i32 {
    %f = warp.wait %ring[%i] newer = 0 : !warp.ring<2, 64x64xf16> -> !warp.smem<64x64xf16, full>
    warp.release %ring[%c0] : !warp.ring<2, 64x64xf16>
  }
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"}, %keys: !tile.index<64> {tile.field = "keys"})
    attributes {schedule = #warp.schedule<arch = 80, warps = 4, index = dense>} {
  %ring = warp.alloc : !warp.ring<2, 64x64xf16>
  %c0 = arith.constant 0 : i32
  %c1 = arith.constant 1 : i32
  %n = warp.count %keys : !tile.index<64>
  scf.for %i = %c0 to %n step %c1 : i32 {
    %f = warp.wait %ring[%i] newer = 0 : !warp.ring<2, 64x64xf16> -> !warp.smem<64x64xf16, full>
    warp.release %ring[%i] : !warp.ring<2, 64x64xf16>
    // expected-error@+1 {{in a loop needs a warp.wait between it and the release of its ring}}
    %e = warp.acquire %ring[%i] : !warp.ring<2, 64x64xf16> -> !warp.smem<64x64xf16, empty>
    warp.commit %ring[%i] : !warp.ring<2, 64x64xf16>
  }
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"}, %keys: !tile.index<64> {tile.field = "keys"})
    attributes {schedule = #warp.schedule<arch = 90, warps = 4, index = dense>} {
  %ring = warp.alloc : !warp.ring<2, 64x64xf16>
  %c0 = arith.constant 0 : i32
  %c1 = arith.constant 1 : i32
  %n = warp.count %keys : !tile.index<64>
  warp.commit %ring[%c0] : !warp.ring<2, 64x64xf16>
  %f = warp.wait %ring[%c0] newer = 0 : !warp.ring<2, 64x64xf16> -> !warp.smem<64x64xf16, full>
  // expected-error@+1 {{result must be waited for exactly once}}
  %p = warp.mma_issue %f, %f transpose_b : !warp.smem<64x64xf16, full>, !warp.smem<64x64xf16, full> -> !warp.pending<tensor<64x64xf32, #warp.frag<acc>>>
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"}, %keys: !tile.index<64> {tile.field = "keys"})
    attributes {schedule = #warp.schedule<arch = 80, warps = 4, index = dense>} {
  %ring = warp.alloc : !warp.ring<2, 64x64xf16>
  %c0 = arith.constant 0 : i32
  %c1 = arith.constant 1 : i32
  %n = warp.count %keys : !tile.index<64>
  warp.commit %ring[%c0] : !warp.ring<2, 64x64xf16>
  %f = warp.wait %ring[%c0] newer = 0 : !warp.ring<2, 64x64xf16> -> !warp.smem<64x64xf16, full>
  // expected-error@+1 {{needs architecture 90, not 80}}
  %p = warp.mma_issue %f, %f transpose_b : !warp.smem<64x64xf16, full>, !warp.smem<64x64xf16, full> -> !warp.pending<tensor<64x64xf32, #warp.frag<acc>>>
  %s = warp.mma_wait %p newer = 0 : !warp.pending<tensor<64x64xf32, #warp.frag<acc>>> -> tensor<64x64xf32, #warp.frag<acc>>
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"}, %keys: !tile.index<64> {tile.field = "keys"})
    attributes {schedule = #warp.schedule<arch = 90, warps = 4, index = dense>} {
  %ring = warp.alloc : !warp.ring<2, 64x64xf16>
  %c0 = arith.constant 0 : i32
  %c1 = arith.constant 1 : i32
  %n = warp.count %keys : !tile.index<64>
  warp.commit %ring[%c0] : !warp.ring<2, 64x64xf16>
  %f = warp.wait %ring[%c0] newer = 0 : !warp.ring<2, 64x64xf16> -> !warp.smem<64x64xf16, full>
  %p = warp.mma_issue %f, %f transpose_b : !warp.smem<64x64xf16, full>, !warp.smem<64x64xf16, full> -> !warp.pending<tensor<64x64xf32, #warp.frag<acc>>>
  // expected-error@+1 {{but only 0 were issued since: it would not wait for its own}}
  %s = warp.mma_wait %p newer = 1 : !warp.pending<tensor<64x64xf32, #warp.frag<acc>>> -> tensor<64x64xf32, #warp.frag<acc>>
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"}, %keys: !tile.index<64> {tile.field = "keys"})
    attributes {schedule = #warp.schedule<arch = 90, warps = 4, index = dense>} {
  %ring = warp.alloc : !warp.ring<2, 64x64xf16>
  %c0 = arith.constant 0 : i32
  %c1 = arith.constant 1 : i32
  %n = warp.count %keys : !tile.index<64>
  warp.commit %ring[%c0] : !warp.ring<2, 64x64xf16>
  %f = warp.wait %ring[%c0] newer = 0 : !warp.ring<2, 64x64xf16> -> !warp.smem<64x64xf16, full>
  %p = warp.mma_issue %f, %f transpose_b : !warp.smem<64x64xf16, full>, !warp.smem<64x64xf16, full> -> !warp.pending<tensor<64x64xf32, #warp.frag<acc>>>
  // expected-error@+1 {{op operand #0 must be floating-point-like, but got '!warp.pending}}
  %s = arith.negf %p : !warp.pending<tensor<64x64xf32, #warp.frag<acc>>>
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"}, %keys: !tile.index<64> {tile.field = "keys"})
    attributes {schedule = #warp.schedule<arch = 80, warps = 4, index = dense>} {
  %ring = warp.alloc : !warp.ring<2, 64x64xf16>
  %c0 = arith.constant 0 : i32
  %c1 = arith.constant 1 : i32
  %n = warp.count %keys : !tile.index<64>
  warp.commit %ring[%c0] : !warp.ring<2, 64x64xf16>
  %f = warp.wait %ring[%c0] newer = 0 : !warp.ring<2, 64x64xf16> -> !warp.smem<64x64xf16, full>
  // expected-error@+1 {{result is not of shape 64x64}}
  %s = warp.mma %f, %f transpose_b : !warp.smem<64x64xf16, full>, !warp.smem<64x64xf16, full> -> tensor<64x128xf32, #warp.frag<acc>>
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"}, %keys: !tile.index<64> {tile.field = "keys"})
    attributes {schedule = #warp.schedule<arch = 80, warps = 4, index = dense>} {
  %ring = warp.alloc : !warp.ring<2, 64x64xf16>
  %c0 = arith.constant 0 : i32
  %c1 = arith.constant 1 : i32
  %n = warp.count %keys : !tile.index<64>
  // expected-error@+1 {{gives a tile of which nobody says how it lies in registers}}
  %z = arith.constant dense<0.0> : tensor<64xf32>
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"}, %keys: !tile.index<64> {tile.field = "keys"})
    attributes {schedule = #warp.schedule<arch = 80, warps = 4, index = dense>} {
  %ring = warp.alloc : !warp.ring<2, 64x64xf16>
  %c0 = arith.constant 0 : i32
  %c1 = arith.constant 1 : i32
  %n = warp.count %keys : !tile.index<64>
  // expected-error@+1 {{gives 32 rows, no multiple of 16 for 4 warps}}
  %z = arith.constant dense<0.0> : tensor<32xf32, #warp.frag<row>>
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"}, %keys: !tile.index<64> {tile.field = "keys"})
    attributes {schedule = #warp.schedule<arch = 80, warps = 4, index = dense>} {
  %ring = warp.alloc : !warp.ring<2, 64x64xf16>
  %c0 = arith.constant 0 : i32
  %c1 = arith.constant 1 : i32
  %n = warp.count %keys : !tile.index<64>
  // expected-error@+1 {{gives a fragment of the wrong rank}}
  %z = arith.constant dense<0.0> : tensor<64x64xf32, #warp.frag<row>>
  warp.return
}

// -----

// expected-error@+1 {{a shared-memory tile holds f16 or bf16, not 'f32'}}
func.func private @t(!warp.ring<2, 64x64xf32>)

// -----

// expected-error@+1 {{a shared-memory tile has a multiple of 8 rows and of 16 columns, not 64x72}}
func.func private @t(!warp.smem<64x72xf16, full>)

// -----

// expected-error@+1 {{a ring has 1 to 8 stages, not 9}}
func.func private @t(!warp.ring<9, 64x64xf16>)

// -----

// expected-error@+1 {{empty or full expected, not half}}
func.func private @t(!warp.smem<64x64xf16, half>)

// -----

// expected-error@+1 {{a schedule needs architecture 80 or later, not 75}}
func.func private @t() attributes {s = #warp.schedule<arch = 75, warps = 4, index = dense>}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"})
    attributes {schedule = #warp.schedule<arch = 80, warps = 4, index = dense>} {
  // expected-error@+1 {{needs architecture 90, not 80}}
  warp.roles copy 40 {
    %c0 = arith.constant 0 : i32
  } compute 232 {
    %c0 = arith.constant 0 : i32
  }
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"})
    attributes {schedule = #warp.schedule<arch = 90, warps = 12, index = dense>} {
  // expected-error@+1 {{wants 94208 registers of 65536}}
  warp.roles copy 40 {
    %c0 = arith.constant 0 : i32
  } compute 232 {
    %c0 = arith.constant 0 : i32
  }
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"})
    attributes {schedule = #warp.schedule<arch = 90, warps = 8, index = dense>} {
  %ring = warp.alloc : !warp.ring<1, 64x64xf16>
  warp.roles copy 40 {
    %c0 = arith.constant 0 : i32
    warp.commit %ring[%c0] : !warp.ring<1, 64x64xf16>
    // expected-error@+1 {{is no work of the copying warpgroup}}
    %full = warp.wait %ring[%c0] newer = 0 : !warp.ring<1, 64x64xf16> -> !warp.smem<64x64xf16, full>
  } compute 232 {
    %c0 = arith.constant 0 : i32
  }
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"})
    attributes {schedule = #warp.schedule<arch = 90, warps = 8, index = dense>} {
  %ring = warp.alloc : !warp.ring<1, 64x64xf16>
  warp.roles copy 40 {
    %c0 = arith.constant 0 : i32
  } compute 232 {
    %c0 = arith.constant 0 : i32
    // expected-error@+1 {{is no work of the computing warpgroups}}
    warp.commit %ring[%c0] : !warp.ring<1, 64x64xf16>
  }
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"})
    attributes {schedule = #warp.schedule<arch = 90, warps = 4, index = dense>} {
  // expected-error@+1 {{has 8 or 12 computing warps, not 4}}
  warp.roles copy 40 {
    %c0 = arith.constant 0 : i32
  } compute 232 {
    %c0 = arith.constant 0 : i32
  }
  warp.return
}

// -----

// One side alone has tiles after the first.
warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"})
    attributes {schedule = #warp.schedule<arch = 90, warps = 8, index = dense>} {
  %ring = warp.alloc : !warp.ring<1, 64x64xf16>
  // expected-error@+1 {{has 1 warp.for_work that copy and 0 that compute: one of each, or none}}
  warp.roles copy 40 {
    warp.for_work {
    ^bb0(%work: i32, %first: i32, %mine: !tile.view<?x64xf16>):
      warp.commit %ring[%work] : !warp.ring<1, 64x64xf16>
      warp.next_work %first
    }
  } compute 232 {
    %c0 = arith.constant 0 : i32
  }
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"})
    attributes {schedule = #warp.schedule<arch = 90, warps = 8, index = dense>} {
  %ring = warp.alloc : !warp.ring<1, 64x64xf16>
  warp.roles copy 40 {
    // expected-error@+1 {{takes two i32 and then what the kernel takes}}
    warp.for_work {
    ^bb0(%work: i32, %first: i32):
      warp.commit %ring[%work] : !warp.ring<1, 64x64xf16>
      warp.next_work %first
    }
  } compute 232 {
    warp.for_work {
    ^bb0(%work: i32, %first: i32, %mine: !tile.view<?x64xf16>):
      %full = warp.wait %ring[%work] newer = 0 : !warp.ring<1, 64x64xf16> -> !warp.smem<64x64xf16, full>
      warp.release %ring[%work] : !warp.ring<1, 64x64xf16>
      warp.next_work %first
    }
  }
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"})
    attributes {schedule = #warp.schedule<arch = 90, warps = 8, index = dense>} {
  %ring = warp.alloc : !warp.ring<1, 64x64xf16>
  warp.roles copy 40 {
    %c0 = arith.constant 0 : i32
    warp.for_work {
    ^bb0(%work: i32, %first: i32, %mine: !tile.view<?x64xf16>):
      // expected-error@+1 {{has the same number for all of warp.for_work's tiles: its ring does not go on}}
      warp.commit %ring[%c0] : !warp.ring<1, 64x64xf16>
      warp.next_work %first
    }
  } compute 232 {
    warp.for_work {
    ^bb0(%work: i32, %first: i32, %mine: !tile.view<?x64xf16>):
      %full = warp.wait %ring[%work] newer = 0 : !warp.ring<1, 64x64xf16> -> !warp.smem<64x64xf16, full>
      warp.release %ring[%work] : !warp.ring<1, 64x64xf16>
      warp.next_work %first
    }
  }
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"})
    attributes {schedule = #warp.schedule<arch = 90, warps = 8, index = dense>} {
  %ring = warp.alloc : !warp.ring<1, 64x64xf16>
  warp.roles copy 40 {
    %c0 = arith.constant 0 : i32
    // expected-error@+1 {{is outside of warp.for_work, which numbers the tiles of rings}}
    warp.commit %ring[%c0] : !warp.ring<1, 64x64xf16>
    warp.for_work {
    ^bb0(%work: i32, %first: i32, %mine: !tile.view<?x64xf16>):
      warp.commit %ring[%work] : !warp.ring<1, 64x64xf16>
      warp.next_work %first
    }
  } compute 232 {
    warp.for_work {
    ^bb0(%work: i32, %first: i32, %mine: !tile.view<?x64xf16>):
      %full = warp.wait %ring[%work] newer = 0 : !warp.ring<1, 64x64xf16> -> !warp.smem<64x64xf16, full>
      warp.release %ring[%work] : !warp.ring<1, 64x64xf16>
      warp.next_work %first
    }
  }
  warp.return
}

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"})
    attributes {schedule = #warp.schedule<arch = 90, warps = 8, index = dense>} {
  %ring = warp.alloc : !warp.ring<1, 64x64xf16>
  warp.roles copy 40 {
    warp.for_work {
    ^bb0(%work: i32, %first: i32, %mine: !tile.view<?x64xf16>):
      %empty = warp.acquire %ring[%work] : !warp.ring<1, 64x64xf16> -> !warp.smem<64x64xf16, empty>
      // expected-error@+1 {{uses an argument of the kernel in warp.for_work, which has its own}}
      warp.copy %q to %empty : !tile.view<?x64xf16> to !warp.smem<64x64xf16, empty>
      warp.commit %ring[%work] : !warp.ring<1, 64x64xf16>
      warp.next_work %first
    }
  } compute 232 {
    warp.for_work {
    ^bb0(%work: i32, %first: i32, %mine: !tile.view<?x64xf16>):
      %full = warp.wait %ring[%work] newer = 0 : !warp.ring<1, 64x64xf16> -> !warp.smem<64x64xf16, full>
      warp.release %ring[%work] : !warp.ring<1, 64x64xf16>
      warp.next_work %first
    }
  }
  warp.return
}

// Every stage comes round again, that of Q too.

// -----

warp.kernel @k(%q: !tile.view<?x64xf16> {tile.field = "q"})
    attributes {schedule = #warp.schedule<arch = 90, warps = 8, index = dense>} {
  %ring = warp.alloc : !warp.ring<1, 64x64xf16>
  warp.roles copy 40 {
    warp.for_work {
    ^bb0(%work: i32, %first: i32, %mine: !tile.view<?x64xf16>):
      warp.commit %ring[%work] : !warp.ring<1, 64x64xf16>
      warp.next_work %first
    }
  } compute 232 {
    warp.for_work {
    ^bb0(%work: i32, %first: i32, %mine: !tile.view<?x64xf16>):
      // expected-error@+1 {{in a loop is not followed by a release of the same tile in its block}}
      %full = warp.wait %ring[%work] newer = 0 : !warp.ring<1, 64x64xf16> -> !warp.smem<64x64xf16, full>
      warp.next_work %first
    }
  }
  warp.return
}
