// Kernels for float32 on CPU (see interface.py): each reads and writes every tensor once.
//
// A tensor is `outer` x `channels` x `inner` numbers: (N, C, S) when contiguous, (N * S, C, 1) when channels last.
// Sums within short blocks are in float32, about a sample of the block, and over blocks in double, so that neither
// long sums nor |mean| >> std cost accuracy. Blocks depend only on the shape: the same bits for any number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif
#if defined(__AVX512F__) || defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t LANES = 16;
constexpr int64_t BLOCK = 2048;     // numbers of a channel per float32 sum, contiguous
constexpr int64_t ROWS = 256;       // the same for channels last, with one number of each channel per row
constexpr int64_t SEGMENTS = 16;    // parts of the rows that threads share
constexpr int64_t PARALLEL = 1 << 15;  // numbers below which threads cost more than they save
constexpr int64_t LARGE = 1 << 21;     // numbers of a tensor that isn't in a core's caches
constexpr int64_t STRIP = 512;         // numbers fetched or streamed at once
constexpr int64_t AHEAD = 2048;        // numbers between a row that is read and one that is fetched

typedef float Vector __attribute__((vector_size(4 * LANES)));

inline Vector load(const float* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

// Asks for huge pages for memory that is about to be written: a large tensor is often mapped anew when it is allocated,
// and the faults of its 4 KiB pages can take as long as writing them.
inline void use_huge_pages(float* memory, int64_t count) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t PAGE = 1 << 21;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + PAGE - 1) & ~(PAGE - 1);
    const uintptr_t end = reinterpret_cast<uintptr_t>(memory + count) & ~(PAGE - 1);
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Fetches memory in its order, which it is read in several streams soon.
inline void fetch(const float* p, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) __builtin_prefetch(p + i);
}

// Copies to memory that isn't in the caches, without reading it first, as an ordinary store does.
inline void stream(const float* from, float* to, int64_t count) {
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i < count && reinterpret_cast<uintptr_t>(to + i) % 64; ++i) to[i] = from[i];
    for (; i + 16 <= count; i += 16) _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
#elif defined(__AVX__)
    for (; i < count && reinterpret_cast<uintptr_t>(to + i) % 32; ++i) to[i] = from[i];
    for (; i + 8 <= count; i += 8) _mm256_stream_ps(to + i, _mm256_loadu_ps(from + i));
#endif
    for (; i < count; ++i) to[i] = from[i];
}

// Makes streamed numbers visible to other threads.
inline void end_stream() {
#if defined(__AVX512F__) || defined(__AVX__)
    _mm_sfence();
#endif
}

inline double sum(Vector v) {
    double total = 0;
    for (int64_t i = 0; i < LANES; ++i) total += v[i];
    return total;
}

struct Shape {
    int64_t outer, channels, inner;
    int64_t numel() const { return outer * channels * inner; }
};

// Two sums in float32 over parts of a block; `Term` returns a number's contribution to each.
struct Pair {
    Vector first[2] = {}, second[2] = {};
    double first_rest = 0, second_rest = 0;  // for planes shorter than a vector, which may be all of a long sum

    template <class Term>
    inline void add(int64_t begin, int64_t end, const Term& term) {
        int64_t i = begin;
        for (; i + 2 * LANES <= end; i += 2 * LANES) {
            term.vector(i, first[0], second[0]);
            term.vector(i + LANES, first[1], second[1]);
        }
        for (; i + LANES <= end; i += LANES) term.vector(i, first[0], second[0]);
        for (; i < end; ++i) term.scalar(i, first_rest, second_rest);
    }
    double total_first() const { return sum(first[0] + first[1]) + first_rest; }
    double total_second() const { return sum(second[0] + second[1]) + second_rest; }
};

// Calls `block(c, n, last, begin, end)` for every block of every channel of a contiguous tensor, in the order of memory:
// a block is a few whole planes, or a part of one.
template <class Block>
inline void blocks_of_planes(const Shape& shape, int threads, const Block& block) {
    const int64_t planes = std::max<int64_t>(1, BLOCK / shape.inner);
#pragma omp parallel for num_threads(threads) if (shape.numel() > PARALLEL)
    for (int64_t part = 0; part < threads; ++part) {
        const int64_t from = shape.channels * part / threads, to = shape.channels * (part + 1) / threads;
        for (int64_t n = 0; n < shape.outer; n += planes) {
            const int64_t last = std::min(n + planes, shape.outer);
            for (int64_t c = from; c < to; ++c) {
                for (int64_t begin = 0; begin < shape.inner; begin += BLOCK) {
                    block(c, n, last, begin, std::min(begin + BLOCK, shape.inner));
                }
            }
        }
    }
}

struct Squares {
    const float* x;
    float near;
    inline void vector(int64_t i, Vector& total, Vector& squares) const {
        const Vector d = load(x + i) - near;
        total += d;
        squares += d * d;
    }
    inline void scalar(int64_t i, double& total, double& squares) const {
        const float d = x[i] - near;
        total += d;
        squares += d * d;
    }
};

struct Products {
    const float *dy, *x;
    float mean;
    inline void vector(int64_t i, Vector& total, Vector& products) const {
        const Vector g = load(dy + i);
        total += g;
        products += g * (load(x + i) - mean);
    }
    inline void scalar(int64_t i, double& total, double& products) const {
        total += dy[i];
        products += dy[i] * (x[i] - mean);
    }
    inline void fetch(int64_t i, int64_t count) const {
        ::fetch(dy + i, count);
        ::fetch(x + i, count);
    }
};

// The same for dz, dy times the activation's derivative by the sign of y, which is stored.
struct ActivatedProducts {
    const float *dy, *y, *x;
    float* dz;
    float mean, slope;
    inline void vector(int64_t i, Vector& total, Vector& products) const {
        const Vector g = load(dy + i);
        const Vector z = load(y + i) > 0 ? g : g * slope;
        store(dz + i, z);
        total += z;
        products += z * (load(x + i) - mean);
    }
    inline void scalar(int64_t i, double& total, double& products) const {
        const float z = y[i] > 0 ? dy[i] : dy[i] * slope;
        dz[i] = z;
        total += z;
        products += z * (x[i] - mean);
    }
    inline void fetch(int64_t i, int64_t count) const {
        ::fetch(dy + i, count);
        ::fetch(y + i, count);
        ::fetch(x + i, count);
    }
};

// Shift sums of n numbers about a point to another one, `delta` below.
inline void move(double n, double delta, double total, double squares, double& to_total, double& to_squares) {
    to_total += total + n * delta;
    to_squares += squares + 2 * delta * total + n * delta * delta;
}

void moments_of_planes(const float* x, const Shape& shape, double* mean, double* m2, int threads) {
    const double count = double(shape.outer * shape.inner);
    std::vector<double> total(shape.channels), squares(shape.channels);
    blocks_of_planes(shape, threads, [&](int64_t c, int64_t n, int64_t last, int64_t begin, int64_t end) {
        const double origin = x[c * shape.inner];
        const float near = x[(n * shape.channels + c) * shape.inner + begin];
        Pair sums;
        for (int64_t i = n; i < last; ++i) {
            sums.add(begin, end, Squares{x + (i * shape.channels + c) * shape.inner, near});
        }
        move(double((last - n) * (end - begin)), near - origin, sums.total_first(), sums.total_second(), total[c],
             squares[c]);
    });
    for (int64_t c = 0; c < shape.channels; ++c) {
        mean[c] = x[c * shape.inner] + total[c] / count;
        m2[c] = std::max(squares[c] - total[c] * total[c] / count, 0.0);  // keeps a NaN
    }
}

// Adds up two sums of every channel, over blocks of rows: `block(row, last, first, second, about)` adds to `channels`
// floats each, about points that it may choose, and `flush` adds those to doubles.
template <class Block, class Flush>
void over_rows(const Shape& shape, double* first, double* second, int threads, const Block& block,
               const Flush& flush) {
    const int64_t C = shape.channels;
    const int64_t blocks = (shape.outer + ROWS - 1) / ROWS, segments = std::min(blocks, SEGMENTS);
    std::vector<double> parts(2 * segments * C, 0.0);
#pragma omp parallel for num_threads(threads) if (shape.numel() > PARALLEL)
    for (int64_t s = 0; s < segments; ++s) {
        std::vector<float> sums(3 * C);
        const float* about = sums.data() + 2 * C;
        double* part = parts.data() + 2 * s * C;
        for (int64_t b = blocks * s / segments; b < blocks * (s + 1) / segments; ++b) {
            const int64_t row = b * ROWS, last = std::min(row + ROWS, shape.outer);
            std::fill(sums.begin(), sums.end(), 0.0f);
            block(row, last, sums.data(), sums.data() + C, sums.data() + 2 * C);
            for (int64_t c = 0; c < C; ++c) {
                flush(last - row, about[c], c, sums[c], sums[C + c], part[c], part[C + c]);
            }
        }
    }
    std::fill(first, first + C, 0.0);
    std::fill(second, second + C, 0.0);
    for (int64_t s = 0; s < segments; ++s) {
        const double* part = parts.data() + 2 * s * C;
        for (int64_t c = 0; c < C; ++c) first[c] += part[c];
        for (int64_t c = 0; c < C; ++c) second[c] += part[C + c];
    }
}

void moments_of_rows(const float* x, const Shape& shape, double* mean, double* m2, int threads) {
    const int64_t C = shape.channels;
    const bool large = shape.numel() > LARGE;
    const double count = double(shape.outer);
    auto block = [&](int64_t row, int64_t last, float* __restrict total, float* __restrict squares,
                     float* __restrict near) {
        const int64_t samples = std::min<int64_t>(4, last - row);  // their mean is closer to the block's than one is
        for (int64_t r = row; r < row + samples; ++r) {
            for (int64_t i = 0; i < C; ++i) near[i] += x[r * C + i] / float(samples);
        }
        const int64_t ahead = std::max(4 * C, AHEAD);
        int64_t r = row;
        for (; r + 4 <= last; r += 4) {
            if (large) fetch(x + r * C + ahead, 4 * C);
            const float *__restrict a = x + r * C, *__restrict b = a + C, *__restrict c = b + C, *__restrict d = c + C;
            for (int64_t i = 0; i < C; ++i) {
                const float p = a[i] - near[i], q = b[i] - near[i], s = c[i] - near[i], t = d[i] - near[i];
                total[i] += (p + q) + (s + t);
                squares[i] += (p * p + q * q) + (s * s + t * t);
            }
        }
        for (; r < last; ++r) {
            for (int64_t i = 0; i < C; ++i) {
                const float d = x[r * C + i] - near[i];
                total[i] += d;
                squares[i] += d * d;
            }
        }
    };
    auto flush = [&](int64_t rows, float near, int64_t c, float total, float squares, double& first, double& second) {
        move(double(rows), double(near) - x[c], total, squares, first, second);
    };
    over_rows(shape, mean, m2, threads, block, flush);
    for (int64_t c = 0; c < C; ++c) {
        const double total = mean[c], squares = m2[c];
        mean[c] = x[c] + total / count;
        m2[c] = std::max(squares - total * total / count, 0.0);
    }
}

template <class Terms>
void sums_of_planes(const Shape& shape, const Terms& terms, double* first, double* second, int threads) {
    std::fill(first, first + shape.channels, 0.0);
    std::fill(second, second + shape.channels, 0.0);
    const bool large = shape.numel() > LARGE;
    blocks_of_planes(shape, threads, [&](int64_t c, int64_t n, int64_t last, int64_t begin, int64_t end) {
        Pair sums;
        for (int64_t i = n; i < last; ++i) {
            const auto term = terms(c, (i * shape.channels + c) * shape.inner);
            for (int64_t at = begin; at < end; at += STRIP) {
                const int64_t stop = std::min(at + STRIP, end);
                if (large) term.fetch(at, stop - at);
                sums.add(at, stop, term);
            }
        }
        first[c] += sums.total_first();
        second[c] += sums.total_second();
    });
}

inline void add(int64_t, float, int64_t, float a, float b, double& first, double& second) {
    first += a;
    second += b;
}

void products_of_rows(const float* dy, const float* x, const float* mean, const Shape& shape, double* first,
                      double* second, int threads) {
    const int64_t C = shape.channels;
    const bool large = shape.numel() > LARGE;
    auto block = [&](int64_t row, int64_t last, float* __restrict total, float* __restrict products, float*) {
        const int64_t ahead = std::max(2 * C, AHEAD);
        int64_t r = row;
        for (; r + 2 <= last; r += 2) {
            if (large) fetch(dy + r * C + ahead, 2 * C);
            if (large) fetch(x + r * C + ahead, 2 * C);
            const float *__restrict g = dy + r * C, *__restrict h = g + C;
            const float *__restrict u = x + r * C, *__restrict v = u + C;
            for (int64_t i = 0; i < C; ++i) {
                total[i] += g[i] + h[i];
                products[i] += g[i] * (u[i] - mean[i]) + h[i] * (v[i] - mean[i]);
            }
        }
        for (; r < last; ++r) {
            for (int64_t i = 0; i < C; ++i) {
                total[i] += dy[r * C + i];
                products[i] += dy[r * C + i] * (x[r * C + i] - mean[i]);
            }
        }
    };
    over_rows(shape, first, second, threads, block, add);
}

void activated_products_of_rows(const float* dy, const float* y, const float* x, const float* mean, float slope,
                                float* dz, const Shape& shape, double* first, double* second, int threads) {
    const int64_t C = shape.channels;
    auto block = [&](int64_t row, int64_t last, float* __restrict total, float* __restrict products, float*) {
        const float below = slope;
        for (int64_t r = row; r < last; ++r) {
            const float *__restrict g = dy + r * C, *__restrict v = y + r * C, *__restrict u = x + r * C;
            float* __restrict z = dz + r * C;
            for (int64_t i = 0; i < C; ++i) {
                const float d = g[i] * (v[i] > 0 ? 1.0f : below);
                z[i] = d;
                total[i] += d;
                products[i] += d * (u[i] - mean[i]);
            }
        }
    };
    over_rows(shape, first, second, threads, block, add);
}

// Calls `apply.plane(at, length, c, to)` or `apply.row(at, c, length, to)` for stretches of numbers from `at` on: of
// channel c, or of the channels from c on. `to` is where they are written: in `target`, or if that is large in a buffer
// that is streamed to it.
template <class Apply>
void everywhere(const Shape& shape, int threads, const Apply& apply, float* target) {
    const bool rows = shape.inner == 1, streams = shape.numel() > 2 * LARGE;
    const int64_t stretches = rows ? shape.outer : shape.outer * shape.channels;
    const int64_t length = rows ? shape.channels : shape.inner;
    use_huge_pages(target, shape.numel());
#pragma omp parallel num_threads(threads) if (shape.numel() > PARALLEL)
    {
        alignas(64) float buffer[STRIP];
#pragma omp for
        for (int64_t s = 0; s < stretches; ++s) {
            for (int64_t i = 0; i < length; i += streams ? STRIP : length) {
                const int64_t at = s * length + i, count = streams ? std::min(STRIP, length - i) : length;
                float* to = streams ? buffer : target + at;
                if (streams) apply.fetch(at, count);
                if (rows) {
                    apply.row(at, i, count, to);
                } else {
                    apply.plane(at, count, s % shape.channels, to);
                }
                if (streams) stream(buffer, target + at, count);
            }
        }
        if (streams) end_stream();
    }
}

struct Normalize {
    const float *x, *mean, *scale, *bias, *residual;
    float slope;

    // No branch on z: its sign is unpredictable, and a loop with a branch isn't vectorized.
    static inline float activate(float z, float slope) { return std::max(z, 0.0f) + slope * std::min(z, 0.0f); }

    void fetch(int64_t at, int64_t count) const {
        ::fetch(x + at, count);
        if (residual) ::fetch(residual + at, count);
    }
    void plane(int64_t at, int64_t length, int64_t c, float* __restrict to) const {
        const float* __restrict u = x + at;
        const float m = mean[c], a = scale[c], b = bias[c], s = slope;
        if (residual) {
            const float* r = residual + at;
            for (int64_t i = 0; i < length; ++i) to[i] = activate((u[i] - m) * a + b + r[i], s);
        } else if (slope != 1) {
            for (int64_t i = 0; i < length; ++i) to[i] = activate((u[i] - m) * a + b, s);
        } else {
            for (int64_t i = 0; i < length; ++i) to[i] = (u[i] - m) * a + b;
        }
    }
    void row(int64_t at, int64_t c, int64_t length, float* __restrict to) const {
        const float* __restrict u = x + at;
        const float *m = mean + c, *a = scale + c, *b = bias + c;
        const float s = slope;
        if (residual) {
            const float* r = residual + at;
            for (int64_t i = 0; i < length; ++i) to[i] = activate((u[i] - m[i]) * a[i] + b[i] + r[i], s);
        } else if (slope != 1) {
            for (int64_t i = 0; i < length; ++i) to[i] = activate((u[i] - m[i]) * a[i] + b[i], s);
        } else {
            for (int64_t i = 0; i < length; ++i) to[i] = (u[i] - m[i]) * a[i] + b[i];
        }
    }
};

struct InputGrad {
    const float *dy, *x, *mean, *scale, *slope, *shift;

    void fetch(int64_t at, int64_t count) const {
        ::fetch(dy + at, count);
        ::fetch(x + at, count);
    }
    void plane(int64_t at, int64_t length, int64_t c, float* __restrict to) const {
        const float *__restrict g = dy + at, *__restrict u = x + at;
        const float m = mean[c], a = scale[c], b = slope[c], s = shift[c];
        for (int64_t i = 0; i < length; ++i) to[i] = g[i] * a + ((u[i] - m) * b + s);
    }
    void row(int64_t at, int64_t c, int64_t length, float* __restrict to) const {
        const float *__restrict g = dy + at, *__restrict u = x + at;
        const float *m = mean + c, *a = scale + c, *b = slope + c, *s = shift + c;
        for (int64_t i = 0; i < length; ++i) to[i] = g[i] * a[i] + ((u[i] - m[i]) * b[i] + s[i]);
    }
};

float dot(const float* a, const float* b, int64_t length) {
    Vector sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= length; i += 4 * LANES) {
        for (int64_t j = 0; j < 4; ++j) sums[j] += load(a + i + j * LANES) * load(b + i + j * LANES);
    }
    double rest = 0;
    for (; i < length; ++i) rest += a[i] * b[i];
    return float(rest + sum((sums[0] + sums[1]) + (sums[2] + sums[3])));
}

inline float scale_of(const float* var, const float* weight, double eps, int64_t c) {
    const double scale = 1 / std::sqrt(double(var[c]) + eps);
    return float(weight ? scale * weight[c] : scale);
}

// x_hat = (x - mean) times this.
inline double inverse_std(const float* var, double eps, int64_t c) { return 1 / std::sqrt(double(var[c]) + eps); }

void finish_products(const float* var, double eps, int64_t channels, const double* first, const double* second,
                     float* sum_dy, float* sum_dy_xhat) {
    for (int64_t c = 0; c < channels; ++c) {
        sum_dy[c] = float(first[c]);
        sum_dy_xhat[c] = float(second[c] * inverse_std(var, eps, c));
    }
}

}  // namespace

extern "C" {

// Mean and M2 of every channel, each with at least one number.
void syncbn_moments(const float* x, int64_t outer, int64_t channels, int64_t inner, double* mean, double* m2,
                    int threads) {
    const Shape shape{outer, channels, inner};
    (inner == 1 ? moments_of_rows : moments_of_planes)(x, shape, mean, m2, threads);
}

// y = a((x - mean) / sqrt(var + eps) * weight + bias + residual), a(z) = z where z >= 0 and slope * z elsewhere.
void syncbn_normalize(const float* x, int64_t outer, int64_t channels, int64_t inner, const float* mean,
                      const float* var, double eps, const float* weight, const float* bias, const float* residual,
                      float slope, float* y, int threads) {
    std::vector<float> scale(channels), shift(channels, 0.0f);
    for (int64_t c = 0; c < channels; ++c) scale[c] = scale_of(var, weight, eps, c);
    if (bias) shift.assign(bias, bias + channels);
    everywhere(Shape{outer, channels, inner}, threads,
               Normalize{x, mean, scale.data(), shift.data(), residual, slope}, y);
}

// Sums of dy and dy * x_hat for every channel.
void syncbn_reduce_grad(const float* dy, const float* x, int64_t outer, int64_t channels, int64_t inner,
                        const float* mean, const float* var, double eps, float* sum_dy, float* sum_dy_xhat,
                        int threads) {
    const Shape shape{outer, channels, inner};
    std::vector<double> first(channels), second(channels);
    if (inner == 1) {
        products_of_rows(dy, x, mean, shape, first.data(), second.data(), threads);
    } else {
        auto terms = [&](int64_t c, int64_t at) { return Products{dy + at, x + at, mean[c]}; };
        sums_of_planes(shape, terms, first.data(), second.data(), threads);
    }
    finish_products(var, eps, channels, first.data(), second.data(), sum_dy, sum_dy_xhat);
}

// The same for dz = dy where y > 0 and slope * dy elsewhere, which is written.
void syncbn_reduce_grad_activate(const float* dy, const float* y, const float* x, int64_t outer, int64_t channels,
                                 int64_t inner, const float* mean, const float* var, double eps, float slope,
                                 float* dz, float* sum_dz, float* sum_dz_xhat, int threads) {
    const Shape shape{outer, channels, inner};
    std::vector<double> first(channels), second(channels);
    if (inner == 1) {
        activated_products_of_rows(dy, y, x, mean, slope, dz, shape, first.data(), second.data(), threads);
    } else {
        auto terms = [&](int64_t c, int64_t at) {
            return ActivatedProducts{dy + at, y + at, x + at, dz + at, mean[c], slope};
        };
        sums_of_planes(shape, terms, first.data(), second.data(), threads);
    }
    finish_products(var, eps, channels, first.data(), second.data(), sum_dz, sum_dz_xhat);
}

// The dot product of each row of `b` with that of each of `parts`, which has one for `neighbours[k]` rows of `b`:
// dots[k * rows + r].
void syncbn_row_dots(const float* const* parts, const int64_t* neighbours, int64_t count, const float* b,
                     int64_t rows, int64_t length, float* dots, int threads) {
#pragma omp parallel for num_threads(threads) if (count * rows * length > PARALLEL)
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t k = 0; k < count; ++k) {
            dots[k * rows + r] = dot(parts[k] + r / neighbours[k] * length, b + r * length, length);
        }
    }
}

// dx = weight / sqrt(var + eps) * (dy - mean_dy - x_hat * mean_dy_xhat).
void syncbn_input_grad(const float* dy, const float* x, int64_t outer, int64_t channels, int64_t inner,
                       const float* mean, const float* var, double eps, const float* weight, const float* mean_dy,
                       const float* mean_dy_xhat, float* dx, int threads) {
    std::vector<float> scale(channels), slope(channels), shift(channels);
    for (int64_t c = 0; c < channels; ++c) {
        scale[c] = scale_of(var, weight, eps, c);
        slope[c] = float(-scale[c] * inverse_std(var, eps, c) * mean_dy_xhat[c]);
        shift[c] = -scale[c] * mean_dy[c];
    }
    everywhere(Shape{outer, channels, inner}, threads,
               InputGrad{dy, x, mean, scale.data(), slope.data(), shift.data()}, dx);
}

}
