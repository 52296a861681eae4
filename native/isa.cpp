// Compiled once per instruction set, with that set's flags and NORMWRIGHT_ISA as its name. Includes no templates of the
// standard library: the linker could keep this file's copy of one, built for instructions that another machine lacks.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"

#define NORMWRIGHT_TEXT(name) #name
#define NORMWRIGHT_NAME(name) NORMWRIGHT_TEXT(name)

namespace normwright::NORMWRIGHT_ISA {

#include "pack.inl"
#include "half.inl"
#include "activation.inl"
#include "after.inl"
#include "strip.inl"
#include "moments.inl"
#include "strip_moments.inl"
#include "apply.inl"
#include "grad_sums.inl"
#include "grad_apply.inl"
#include "merge.inl"
#include "gap.inl"
#include "floor.inl"

template <class D>
constexpr Kernels<D> table{moments<D>, apply<D>, grad_sums<D>, grad_apply<D>};

#ifdef NORMWRIGHT_BF16_ALONE
extern const Kernels<bf16> kernels;
const Kernels<bf16> kernels = table<bf16>;
#else
extern const Isa isa;
const Isa isa{NORMWRIGHT_NAME(NORMWRIGHT_ISA), table<float>, table<double>, table<bf16>, table<f16>, copy, triad, quad,
              merge_moments, merge_sums, statistics, {forward_gap<float>, backward_gap<float>},
              {forward_gap<double>, backward_gap<double>}};
#endif

}  // namespace normwright::NORMWRIGHT_ISA
