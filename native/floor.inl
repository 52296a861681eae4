// What memory allows: forward must read one array and write one (copy), backward read two and write one (triad); with a
// residual backward writes two (quad).

template <bool Stream>
INLINE void copy_run(const float* a, float* c, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) put<Stream>(load(a + i), c + i);
  for (; i < n; ++i) c[i] = a[i];
}

template <bool Stream>
INLINE void triad_run(const float* a, const float* b, float* c, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) put<Stream>(load(a + i) + load(b + i), c + i);
  for (; i < n; ++i) c[i] = a[i] + b[i];
}

template <bool Stream>
INLINE void quad_run(const float* a, const float* b, float* c, float* d, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const Pack<float> x = load(a + i), y = load(b + i);
    put<Stream>(x + y, c + i);
    put<Stream>(x - y, d + i);
  }
  for (; i < n; ++i) c[i] = a[i] + b[i], d[i] = a[i] - b[i];
}

void copy(const float* a, float* c, int64_t n, bool stream) {
  if (stream) copy_run<true>(a, c, n), finish_streaming();
  else copy_run<false>(a, c, n);
}

void triad(const float* a, const float* b, float* c, int64_t n, bool stream) {
  if (stream) triad_run<true>(a, b, c, n), finish_streaming();
  else triad_run<false>(a, b, c, n);
}

void quad(const float* a, const float* b, float* c, float* d, int64_t n, bool stream) {
  if (stream) quad_run<true>(a, b, c, d, n), finish_streaming();
  else quad_run<false>(a, b, c, d, n);
}
