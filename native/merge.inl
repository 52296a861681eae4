// merge: the sums of parts become the sums of the whole, per channel, in the parts' order.

constexpr int64_t kMergeWidth = 64;  // channels at a time

// Chan's formula over all parts at once: m2 = sum m2_k + sum n_k (mean_k - mean)^2. n * mean may round; the fused
// multiply-add keeps what it rounds away.
INLINE void merge_moments_of(const Part* parts, int64_t n, double count, Sums whole, int64_t c0, int64_t width) {
  double sum[kMergeWidth], tail[kMergeWidth], mean[kMergeWidth], mean_tail[kMergeWidth], m2[kMergeWidth],
      m2_tail[kMergeWidth];
  for (int64_t k = 0; k < width; ++k) sum[k] = tail[k] = m2[k] = m2_tail[k] = 0;
  for (int64_t p = 0; p < n; ++p)
    for (int64_t k = 0; k < width; ++k) {
      two_sum(sum[k], tail[k], parts[p].sums.first[c0 + k]);
      tail[k] += parts[p].sums.first_tail[c0 + k];
    }
  for (int64_t k = 0; k < width; ++k) {
    mean[k] = total(sum[k], tail[k]) / count;
    mean_tail[k] = (__builtin_fma(-count, mean[k], sum[k]) + tail[k]) / count;
  }
  for (int64_t p = 0; p < n; ++p) {
    const double part = parts[p].count, per_part = 1 / part;
    for (int64_t k = 0; k < width; ++k) {
      const double left = __builtin_fma(-part, mean[k], parts[p].sums.first[c0 + k]);
      const double d = (left + parts[p].sums.first_tail[c0 + k]) * per_part - mean_tail[k];
      two_sum(m2[k], m2_tail[k], parts[p].sums.second[c0 + k]);
      two_sum(m2[k], m2_tail[k], part * d * d);
      m2_tail[k] += parts[p].sums.second_tail[c0 + k];
    }
  }
  for (int64_t k = 0; k < width; ++k) {
    whole.first[c0 + k] = sum[k];
    whole.first_tail[c0 + k] = tail[k];
    whole.second[c0 + k] = m2[k];
    whole.second_tail[c0 + k] = m2_tail[k];
  }
}

void merge_moments(const Part* parts, int64_t n, Sums whole, int64_t c0, int64_t c1) {
  double count = 0;
  for (int64_t p = 0; p < n; ++p) count += parts[p].count;
  for (int64_t c = c0; c < c1; c += kMergeWidth)
    merge_moments_of(parts, n, count, whole, c, c + kMergeWidth < c1 ? kMergeWidth : c1 - c);
}

void merge_sums(const Part* parts, int64_t n, Sums whole, int64_t c0, int64_t c1) {
  for (int64_t c = c0; c < c1; ++c) whole.first[c] = whole.first_tail[c] = whole.second[c] = whole.second_tail[c] = 0;
  for (int64_t p = 0; p < n; ++p) {
    const Sums& part = parts[p].sums;
    for (int64_t c = c0; c < c1; ++c) {
      two_sum(whole.first[c], whole.first_tail[c], part.first[c]);
      two_sum(whole.second[c], whole.second_tail[c], part.second[c]);
      whole.first_tail[c] += part.first_tail[c];
      whole.second_tail[c] += part.second_tail[c];
    }
  }
}
