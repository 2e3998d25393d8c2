// Arithmetic on a few numbers of every channel, for channels.py, which has the formulas.

#include <algorithm>
#include <cmath>
#include <cstdint>

extern "C" {

// The sums that are sent: n * mean and M2 + n * mean^2 of every channel, and n.
void syncbn_pack_moments(const double* count, const double* mean, const double* m2, int64_t channels, double* sums) {
    const double n = *count;
    for (int64_t c = 0; c < channels; ++c) {
        const double total = n * mean[c];
        sums[c] = total;
        sums[channels + c] = m2[c] + total * mean[c];
    }
    sums[2 * channels] = n;
}

// The moments of such sums. Comparisons keep a NaN.
void syncbn_unpack_moments(const double* sums, int64_t channels, double* count, double* mean, double* m2) {
    *count = sums[2 * channels];
    const double n = std::max(*count, 1.0);
    for (int64_t c = 0; c < channels; ++c) {
        mean[c] = sums[c] / n;
        m2[c] = std::max(sums[channels + c] - sums[c] * mean[c], 0.0);
    }
}

// Mean and biased variance in float32.
void syncbn_statistics(const double* count, const double* mean, const double* m2, int64_t channels, float* to_mean,
                       float* to_var) {
    const double n = std::max(*count, 1.0);
    for (int64_t c = 0; c < channels; ++c) {
        to_mean[c] = float(mean[c]);
        to_var[c] = float(m2[c] / n);
    }
}

// Means of sums over `count` samples, in float32.
void syncbn_means(const double* sums, const double* count, int64_t length, float* means) {
    const double n = std::max(*count, 1.0);
    for (int64_t i = 0; i < length; ++i) means[i] = float(sums[i] / n);
}

// Averages mean and unbiased variance into the running statistics by `momentum`, or equally with all batches before if
// it is negative; not if one isn't finite or there are no samples.
void syncbn_track(const double* count, const double* mean, const double* m2, int64_t channels, double momentum,
                  float* running_mean, float* running_var, int64_t* num_batches_tracked) {
    if (!(*count > 0)) return;
    const double n = std::max(*count - 1, 1.0);
    for (int64_t c = 0; c < channels; ++c) {
        if (!std::isfinite(float(mean[c]) + float(m2[c] / n))) return;
    }
    const float rate = momentum < 0 ? 1.0f / float(*num_batches_tracked + 1) : float(momentum);
    const auto average = [rate](float& running, float batch) {  // in the order that is exact at both ends
        const float step = batch - running;
        running = rate < 0.5f ? running + rate * step : batch - step * (1 - rate);
    };
    for (int64_t c = 0; c < channels; ++c) {
        average(running_mean[c], float(mean[c]));
        average(running_var[c], float(m2[c] / n));
    }
    ++*num_batches_tracked;
}

}
