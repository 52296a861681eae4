// The kernels for Python. Arguments are addresses and sizes: doors check shapes, dtypes and lifetimes before they call,
// because an array argument costs microseconds and an address a tenth of one.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <omp.h>

#include <string>
#include <vector>

#include "bind.h"

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

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The native kernels. Called by normwright.kernels.cpu and the doors, which check what they pass.";
  bind_tensors(m);

  m.def(
      "moments",
      [](bool f64, Address x, int64_t outer, int64_t channels, int64_t inner, int64_t stride, nb::bytearray saved) {
        const Saved rows = saved_rows(saved, channels);
        in_type(f64, outer * channels * inner, [&]<class T>(T*) { moments_only(at<const T>(x), {outer, channels, inner, stride}, rows); });
      },
      "f64"_a, "x"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "saved"_a,
      "Write mean, mean_tail and m2 of every channel to rows 0, 1, 2 of saved, (4, C) doubles.");

  m.def(
      "forward_train",
      [](bool f64, Address x, int64_t outer, int64_t channels, int64_t inner, int64_t stride, Address y, Address gamma,
         Address beta, double eps, nb::bytearray saved) {
        const Saved rows = saved_rows(saved, channels);
        in_type(f64, outer * channels * inner, [&]<class T>(T*) {
          forward_train(at<const T>(x), {outer, channels, inner, stride}, at<T>(y), doubles(gamma, 1), doubles(beta, 0), eps,
                        rows, Running{});
        });
      },
      "f64"_a, "x"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "y"_a, "gamma"_a, "beta"_a, "eps"_a, "saved"_a,
      "Write y and saved: mean, mean_tail, m2, rstd, rows of C doubles.");

  m.def(
      "backward_train",
      [](bool f64, Address x, int64_t outer, int64_t channels, int64_t inner, int64_t stride, Address dy, Address dx,
         Address gamma, nb::bytearray saved, Address dgamma, Address dbeta) {
        const Saved rows = saved_rows(saved, channels);
        in_type(f64, outer * channels * inner, [&]<class T>(T*) {
          backward_train(at<const T>(x), {outer, channels, inner, stride}, at<const T>(dy), at<T>(dx), doubles(gamma, 1),
                         rows, room(dgamma), room(dbeta));
        });
      },
      "f64"_a, "x"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "dy"_a, "dx"_a, "gamma"_a, "saved"_a, "dgamma"_a,
      "dbeta"_a, "Write dx, dgamma and dbeta, each where its address is not 0.");

  m.def(
      "forward_fixed",
      [](bool f64, Address x, int64_t outer, int64_t channels, int64_t inner, int64_t stride, Address y, Address gamma,
         Address beta, Address mean, Address var, double eps) {
        in_type(f64, outer * channels * inner, [&]<class T>(T*) {
          forward_fixed(at<const T>(x), {outer, channels, inner, stride}, at<T>(y), doubles(gamma, 1), doubles(beta, 0),
                        doubles(mean, 0), doubles(var, 1), eps);
        });
      },
      "f64"_a, "x"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "y"_a, "gamma"_a, "beta"_a, "mean"_a, "var"_a,
      "eps"_a, "Write y, normalized by the given mean and variance.");

  m.def(
      "backward_fixed",
      [](bool f64, Address x, int64_t outer, int64_t channels, int64_t inner, int64_t stride, Address dy, Address dx,
         Address gamma, Address mean, Address var, double eps, Address dgamma, Address dbeta) {
        in_type(f64, outer * channels * inner, [&]<class T>(T*) {
          backward_fixed(at<const T>(x), {outer, channels, inner, stride}, at<const T>(dy), at<T>(dx), doubles(gamma, 1),
                         doubles(mean, 0), doubles(var, 1), eps, room(dgamma), room(dbeta));
        });
      },
      "f64"_a, "x"_a, "outer"_a, "channels"_a, "inner"_a, "stride"_a, "dy"_a, "dx"_a, "gamma"_a, "mean"_a, "var"_a,
      "eps"_a, "dgamma"_a, "dbeta"_a, "Write dx, dgamma and dbeta, each where its address is not 0.");

  m.def(
      "memory_floor",
      [](Address a, Address b, Address c, int64_t n, bool stream) {
        nb::gil_scoped_release release;
        memory_floor(at<const float>(a), at<const float>(b), at<float>(c), n, stream);
      },
      "a"_a, "b"_a, "c"_a, "n"_a, "stream"_a,
      "c = a + b over n floats (b at 0: c = a) with all threads; stream: stores that bypass the caches.");

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
  m.def("last_level_cache_bytes", &last_level_cache_bytes, "Size of the last-level cache, as the system tells it.");
}
