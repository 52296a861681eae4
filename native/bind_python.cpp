// The kernels for Python. Arguments are addresses and sizes: doors check shapes, dtypes and lifetimes before they call,
// because an array argument costs microseconds and an address a tenth of one.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <omp.h>

#include <string>
#include <vector>

#include "bind.h"
#include "threads.h"

using namespace nb::literals;
using namespace normwright;

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Per-channel numbers, and room for some: doubles.
Reals doubles(Address address, double otherwise) { return {at<void>(address), true, otherwise}; }
MutableReals room(Address address) { return {at<void>(address), true}; }
Affine affine(Address gamma, Address beta) { return {doubles(gamma, 1), doubles(beta, 0)}; }

template <class D>
After<D> after(Address residual, Address bits, Address dresidual, int kind, double a, double b) {
  if (kind < 0 || kind >= kKinds) throw nb::value_error("kind: the number of an activation");
  return {at<const D>(residual), at<Word<Computed<D>>>(bits), at<D>(dresidual), {Kind(kind), a, b}};
}

Dtype dtype_of(int number) {
  if (number < 0 || number > 3) throw nb::value_error("dtype: 0 float32, 1 float64, 2 bfloat16, 3 float16");
  return Dtype(number);
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The native kernels. Called by normwright.kernels.cpu and the doors, which check what they pass.";
  nb::set_leak_warnings(false);  // activations are kept for the life of the process
  bind_tensors(m);
  bind_shared(m);

  m.def(
      "moments",
      [](int dtype, Address x, int64_t outer, int64_t channels, int64_t inner, int64_t stride, nb::bytearray saved) {
        const Saved rows = saved_rows(saved, channels);
        in_type(dtype_of(dtype), outer * channels * inner,
                [&]<class D>(D*) { moments_only(at<const D>(x), {outer, channels, inner, stride}, rows); });
      },
      "dtype"_a, "x"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "saved"_a,
      "Write mean, mean_tail and m2 of every channel to rows 0, 1, 2 of saved, (4, C) doubles.");

  m.def(
      "forward_train",
      [](int dtype, Address x, int64_t outer, int64_t channels, int64_t inner, int64_t stride, Address y, Address gamma,
         Address beta, double eps, nb::bytearray saved, Address residual, Address bits, int kind, double a, double b) {
        const Saved rows = saved_rows(saved, channels);
        in_type(dtype_of(dtype), outer * channels * inner, [&]<class D>(D*) {
          forward_train(at<const D>(x), {outer, channels, inner, stride}, at<D>(y), affine(gamma, beta), eps, rows,
                        Running{}, after<D>(residual, bits, 0, kind, a, b));
        });
      },
      "dtype"_a, "x"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "y"_a, "gamma"_a, "beta"_a, "eps"_a, "saved"_a,
      "residual"_a = 0, "bits"_a = 0, "kind"_a = 0, "a"_a = 0.0, "b"_a = 0.0,
      "Write y and saved: mean, mean_tail, m2, rstd, rows of C doubles; and bits where there is room for them.");

  m.def(
      "backward_train",
      [](int dtype, Address x, int64_t outer, int64_t channels, int64_t inner, int64_t stride, Address dy, Address dx,
         Address gamma, Address beta, nb::bytearray saved, Address dgamma, Address dbeta, Address residual, Address bits,
         Address dresidual, int kind, double a, double b) {
        const Saved rows = saved_rows(saved, channels);
        in_type(dtype_of(dtype), outer * channels * inner, [&]<class D>(D*) {
          backward_train(at<const D>(x), {outer, channels, inner, stride}, at<const D>(dy), affine(gamma, beta), rows,
                         Gradients<D>{at<D>(dx), room(dgamma), room(dbeta)}, after<D>(residual, bits, dresidual, kind, a, b));
        });
      },
      "dtype"_a, "x"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "dy"_a, "dx"_a, "gamma"_a, "beta"_a, "saved"_a,
      "dgamma"_a, "dbeta"_a, "residual"_a = 0, "bits"_a = 0, "dresidual"_a = 0, "kind"_a = 0, "a"_a = 0.0, "b"_a = 0.0,
      "Write dx, dgamma and dbeta, each where its address is not 0; dresidual is written along with dx.");

  m.def(
      "forward_fixed",
      [](int dtype, Address x, int64_t outer, int64_t channels, int64_t inner, int64_t stride, Address y, Address gamma,
         Address beta, Address mean, Address var, double eps, Address residual, Address bits, int kind, double a, double b) {
        in_type(dtype_of(dtype), outer * channels * inner, [&]<class D>(D*) {
          forward_fixed(at<const D>(x), {outer, channels, inner, stride}, at<D>(y), affine(gamma, beta),
                        Fixed{doubles(mean, 0), doubles(var, 1), eps}, after<D>(residual, bits, 0, kind, a, b));
        });
      },
      "dtype"_a, "x"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "y"_a, "gamma"_a, "beta"_a, "mean"_a, "var"_a,
      "eps"_a, "residual"_a = 0, "bits"_a = 0, "kind"_a = 0, "a"_a = 0.0, "b"_a = 0.0,
      "Write y, normalized by the given mean and variance; y may be x or the residual where they lie alike.");

  m.def(
      "backward_fixed",
      [](int dtype, Address x, int64_t outer, int64_t channels, int64_t inner, int64_t stride, Address dy, Address dx,
         Address gamma, Address beta, Address mean, Address var, double eps, Address dgamma, Address dbeta, Address residual,
         Address bits, Address dresidual, int kind, double a, double b) {
        in_type(dtype_of(dtype), outer * channels * inner, [&]<class D>(D*) {
          backward_fixed(at<const D>(x), {outer, channels, inner, stride}, at<const D>(dy), affine(gamma, beta),
                         Fixed{doubles(mean, 0), doubles(var, 1), eps}, Gradients<D>{at<D>(dx), room(dgamma), room(dbeta)},
                         after<D>(residual, bits, dresidual, kind, a, b));
        });
      },
      "dtype"_a, "x"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "dy"_a, "dx"_a, "gamma"_a, "beta"_a, "mean"_a,
      "var"_a, "eps"_a, "dgamma"_a, "dbeta"_a, "residual"_a = 0, "bits"_a = 0, "dresidual"_a = 0, "kind"_a = 0, "a"_a = 0.0,
      "b"_a = 0.0, "As backward_train, by a given mean and variance.");

  m.def(
      "bits_bytes",
      [](int dtype, int64_t outer, int64_t channels, int64_t inner, int64_t stride) {
        return in_type(dtype_of(dtype), 0, [&]<class D>(D*) { return bits_bytes<D>({outer, channels, inner, stride}); });
      },
      "dtype"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "Room for one bit per value, in bytes.");
  m.def(
      "memory_floor",
      [](Address a, Address b, Address c, Address d, int64_t n, bool stream) {
        nb::gil_scoped_release release;
        memory_floor(at<const float>(a), at<const float>(b), at<float>(c), at<float>(d), n, stream);
      },
      "a"_a, "b"_a, "c"_a, "d"_a, "n"_a, "stream"_a,
      "c = a (b at 0), c = a + b (d at 0), or c = a + b and d = a - b, over n floats with all threads; stream: stores "
      "that bypass the caches.");

  m.def("isa", [] { return std::string(active_isa().name); }, "The instruction set whose kernels run.");
  m.def(
      "isas",
      [] {
        std::vector<std::string> names;
        for (int k = 0; k < isa_count(); ++k) names.emplace_back(isa_at(k).name);
        return names;
      },
      "The instruction sets that this machine can run, from the plainest to the widest.");
  m.def(
      "force_isa", [](const std::string& name) { return force_isa(name.c_str()); }, "name"_a,
      "Run the kernels of another instruction set; False, and no change, where this machine cannot.");
  m.def("threads", [] { return omp_get_max_threads(); }, "Threads that a large call uses.");
  m.def("set_threads", [](int n) { omp_set_num_threads(n); }, "n"_a, "Use at most n threads from now on.");
  m.def("trust_fork", &trust_fork,
        "Use threads in this process although it was forked: its parent had not used one. (Else a forked child computes on one "
        "thread, for it would wait for its parent's.)");
  m.def("core_cache_bytes", &core_cache_bytes, "Size of the largest cache that a core has for itself.");
  m.def("last_level_cache_bytes", &last_level_cache_bytes, "Size of the last-level cache, as the system tells it.");
}
