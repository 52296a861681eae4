// The schedules in halves, for a batch that several processes share: between the halves come the others' numbers.
#include "tensors.h"

using namespace nb::literals;

namespace normwright {

void bind_shared(nb::module_& m) {
  m.def(
      "moments_seen",
      [](const Seen& s, nb::bytearray saved) {
        const Saved rows = saved_rows(saved, s.x.at.channels);
        in_type(s.x.dtype, s.x.values(), [&]<class D>(D*) { moments_only(static_cast<const D*>(s.x.data), s.x.at, rows); });
      },
      "seen"_a, "saved"_a, "As moments: mean, mean_tail and m2 of x alone.");

  m.def(
      "merge_rows",
      [](nb::handle rows, double eps, nb::bytearray saved) {
        DlTensor t;
        if (!see(rows, t) || !t.is_real() || !t.is_double() || t.ndim != 2 || t.shape[0] < 1 || t.shape[1] < 1 ||
            t.strides[1] != 1)
          throw nb::type_error("rows: float64 of shape (R, 1 + 3C), dense rows");
        const int64_t channels = (t.shape[1] - 1) / 3;
        return merge_rows(static_cast<const double*>(t.address()), t.shape[0], t.strides[0], channels, eps,
                          saved_rows(saved, channels));
      },
      "rows"_a, "eps"_a, "saved"_a,
      "Rows of (count, mean (C,), mean_tail (C,), m2 (C,)) as one batch, into saved, as forward_train leaves it; its count.");

  m.def(
      "move",
      [](nb::handle mean, nb::handle var, nb::handle counter, nb::bytearray saved, double n, double rate, bool cumulative,
         bool guarded, bool biased) -> std::optional<bool> {
        const int64_t channels = int64_t(saved.size()) / (4 * int64_t(sizeof(double)));
        PerChannel means, vars;
        DlTensor t;
        if (!take_both(means, mean, vars, var, channels)) return {};
        if (!counter.is_none() && (!see(counter, t) || t.ndim != 0 || t.dtype.code != 0 || t.dtype.bits != 64)) return {};
        const Running running{{means.data, means.is_double}, {vars.data, vars.is_double},
                              counter.is_none() ? nullptr : static_cast<int64_t*>(t.address()), rate, cumulative, guarded, biased};
        return move(running, saved_rows(saved, channels), channels, n);
      },
      "mean"_a.none(), "var"_a.none(), "counter"_a.none(), "saved"_a, "n"_a, "rate"_a, "cumulative"_a, "guarded"_a, "biased"_a,
      "Running statistics moved by a batch of n values, of which saved are the statistics, as forward_train moves them. None, and "
      "nothing is written, where they are not of the kernels' types; False where they are guarded and the batch was left out.");

  m.def(
      "forward_by_seen",
      [](const Seen& s, nb::handle y, nb::bytearray saved, nb::handle bits) {
        const Saved rows = saved_rows(saved, s.x.at.channels);
        Follows follows = s.follows;
        void* to = room(y);
        if (!take_bits(follows.bits, bits, s.x)) throw nb::value_error("bits: room for bits_bytes");
        in_type(s.x.dtype, s.x.values(), [&]<class D>(D*) {
          forward_by(static_cast<const D*>(s.x.data), s.x.at, static_cast<D*>(to), s.affine(), rows, follows.in<D>());
        });
      },
      "seen"_a, "y"_a, "saved"_a, "bits"_a.none() = nb::none(), "As forward_train, by statistics of more than x.");

  m.def(
      "backward_sums_seen",
      [](nb::handle x, int64_t axis, nb::handle dy, nb::handle weight, nb::bytearray saved, nb::handle sums, const Known& known,
         nb::handle bias, const Activation* activation, nb::handle residual, nb::handle bits) {
        Backward g;
        if (!g.take(x, axis, dy, weight, nb::none(), nb::none(), nb::none(), known)) return false;
        if (!g.take_follows(bias, activation, residual, bits, nb::none())) return false;
        const int64_t channels = g.x.at.channels;
        PerChannel to;
        if (!to.take(sums, 2 * channels) || !to.is_double) throw nb::type_error("sums: float64 of shape (2C,)");
        double *dbeta = static_cast<double*>(to.data), *dgamma = dbeta + channels;
        const Saved rows = saved_rows(saved, channels);
        in_type(g.x.dtype, g.x.values(), [&]<class D>(D*) {
          backward_sums(static_cast<const D*>(g.x.data), g.x.at, static_cast<const D*>(g.dy.data), g.affine(), rows, dbeta,
                        dgamma, g.follows.in<D>());
        });
        return true;
      },
      "x"_a, "axis"_a, "dy"_a, "weight"_a.none(), "saved"_a, "sums"_a, "known"_a.none(), "bias"_a.none() = nb::none(),
      "activation"_a.none() = nb::none(), "residual"_a.none() = nb::none(), "bits"_a.none() = nb::none(),
      "The first half of backward_train_seen: (2C,) float64 sums over x, dbeta and dgamma.");

  m.def(
      "backward_by_seen",
      [](nb::handle x, int64_t axis, nb::handle dy, nb::handle weight, nb::bytearray saved, nb::handle sums, double n,
         nb::handle dx, const Known& known, nb::handle bias, const Activation* activation, nb::handle residual,
         nb::handle bits, nb::handle dresidual) {
        Backward g;
        if (!g.take(x, axis, dy, weight, dx, nb::none(), nb::none(), known) || !g.dx) return false;
        if (!g.take_follows(bias, activation, residual, bits, dresidual)) return false;
        const int64_t channels = g.x.at.channels;
        PerChannel by;
        if (!by.take(sums, 2 * channels) || !by.is_double) throw nb::type_error("sums: float64 of shape (2C,)");
        const double *dbeta = static_cast<const double*>(by.data), *dgamma = dbeta + channels;
        const Saved rows = saved_rows(saved, channels);
        in_type(g.x.dtype, g.x.values(), [&]<class D>(D*) {
          backward_by(static_cast<const D*>(g.x.data), g.x.at, static_cast<const D*>(g.dy.data), g.affine(), rows, dbeta,
                      dgamma, n, static_cast<D*>(g.dx), g.follows.in<D>());
        });
        return true;
      },
      "x"_a, "axis"_a, "dy"_a, "weight"_a.none(), "saved"_a, "sums"_a, "n"_a, "dx"_a, "known"_a.none(),
      "bias"_a.none() = nb::none(), "activation"_a.none() = nb::none(), "residual"_a.none() = nb::none(),
      "bits"_a.none() = nb::none(), "dresidual"_a.none() = nb::none(),
      "The second half: dx and dresidual, from sums over n values, x's among them.");
}

}  // namespace normwright
