// Sums over the ranks of one host through shared memory; one_shot.py sets it up and reports missing ranks.
//
// Every message has a sequence number, the same on all ranks, and a slot for each rank in a ring of 2k for k messages in
// flight. A rank writes its numbers into its slot, increments the counter, and waits until all have; then it adds all
// slots in rank order. Nothing is acknowledged: a rank may send message n only after it has read message n - k, so a
// rank that has read n - k knows that all have read n - 2k, whose slot n reuses.
//
// Memory: a line for each place of the ring, a line for each rank, and the slots. It starts as all zeros. Counters have
// 32 bits, as futexes require, and wrap around.

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>

#ifdef __linux__  // other systems have no futexes and use torch's collectives

#include <cerrno>
#include <climits>
#include <ctime>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr int64_t LINE = 128;        // bytes per writer, against false sharing: x86 fetches cache lines in pairs
constexpr int64_t YIELDING_US = 300;  // time of a wait before it sleeps: waking up takes 50 us and more

enum State : int64_t { DONE = 0, WAITING = 1, MISMATCH = 2, FULL = 3 };

typedef std::atomic<uint32_t> Counter;
static_assert(Counter::is_always_lock_free && sizeof(Counter) == 4, "processes share it, and a futex is 4 bytes");

// A place of the ring.
struct alignas(LINE) Place {
    Counter arrived;   // messages of all ranks written to this place so far
    Counter sleepers;  // ranks that sleep until the last of a message arrives
};

// Number of messages that a rank has sent, from which missing ranks are identified.
struct alignas(LINE) Progress {
    Counter sent;
};

// Contents of a slot. Different labels of a message mean that ranks don't run the same layers in the same order.
struct Label {
    uint64_t sequence;
    int64_t total;  // numbers of the whole message,
    int64_t begin;  // of which those from here on are in this slot
    int64_t width;  // bytes of a number
    bool operator==(const Label& other) const { return std::memcmp(this, &other, sizeof other) == 0; }
};

struct Endpoint {
    Place* places;
    Progress* progress;
    char* slots;
    int64_t rank, world, ring, stride, spins;
    std::mutex order;                                 // of the threads of this process
    uint64_t next = 0;                                // sequence number of the next message
    std::unique_ptr<std::atomic<uint64_t>[]> unread;  // of every place: 1 + the message this rank has yet to read, or 0

    Place& place(uint64_t sequence) const { return places[sequence % ring]; }
    char* slot(uint64_t sequence, int64_t of) const { return slots + ((sequence % ring) * world + of) * stride; }
    Label label(uint64_t sequence, int64_t of) const {
        Label label;
        std::memcpy(&label, slot(sequence, of), sizeof label);
        return label;
    }
    bool complete(uint64_t sequence) const {
        const uint32_t all = uint32_t(world * (sequence / ring + 1));
        return int32_t(place(sequence).arrived.load(std::memory_order_acquire) - all) >= 0;
    }
};

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    asm volatile("yield");
#endif
}

int64_t microseconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return int64_t(now.tv_sec) * 1000000 + now.tv_nsec / 1000;
}

// Sleep while `counter` is `seen`, for some microseconds at most; whether a signal ended the sleep. Not a private futex:
// the memory is that of several processes.
bool sleep_interrupted(Counter& counter, uint32_t seen, int64_t limit_us) {
    const timespec limit{time_t(limit_us / 1000000), long(limit_us % 1000000) * 1000};
    return syscall(SYS_futex, &counter, FUTEX_WAIT, seen, &limit, nullptr, 0) == -1 && errno == EINTR;
}

void wake_all(Counter& counter) { syscall(SYS_futex, &counter, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }

// Wait for at most `limit_us` until all have sent the message; returns whether they have. Spins, then yields the
// processor (to the awaited ranks, if there are more ranks than processors), then sleeps.
bool await(const Endpoint& endpoint, uint64_t sequence, int64_t limit_us) {
    for (int64_t spin = 0; spin <= endpoint.spins; ++spin) {
        if (endpoint.complete(sequence)) return true;
        pause();
    }
    Place& place = endpoint.place(sequence);
    const int64_t start = microseconds();
    for (int64_t waited = 0; waited < limit_us; waited = microseconds() - start) {
        if (waited < YIELDING_US) {
            sched_yield();
        } else {
            // The sender uses the opposite order: either it sees the sleeper, or the sleeper sees its message.
            place.sleepers.fetch_add(1);
            const uint32_t seen = place.arrived.load();
            const bool interrupted =
                !endpoint.complete(sequence) && sleep_interrupted(place.arrived, seen, limit_us - waited);
            place.sleepers.fetch_sub(1);
            if (interrupted) break;  // Python has a signal to handle
        }
        if (endpoint.complete(sequence)) return true;
    }
    return endpoint.complete(sequence);
}

// Whether the message was sent; `sequence` is its number, or that of the message that has to be read first.
bool send(Endpoint& endpoint, const void* data, int64_t count, int64_t total, int64_t begin, int64_t width,
          uint64_t& sequence) {
    const std::lock_guard<std::mutex> guard(endpoint.order);
    const uint64_t in_flight = endpoint.ring / 2;
    if (endpoint.next >= in_flight) {
        sequence = endpoint.next - in_flight;
        if (endpoint.unread[sequence % endpoint.ring] == sequence + 1) return false;
    }
    sequence = endpoint.next++;
    endpoint.unread[sequence % endpoint.ring] = sequence + 1;
    const Label label{sequence, total, begin, width};
    char* slot = endpoint.slot(sequence, endpoint.rank);
    std::memcpy(slot, &label, sizeof label);
    if (count) std::memcpy(slot + LINE, data, count * width);
    Place& place = endpoint.place(sequence);
    place.arrived.fetch_add(1);
    // Last: a rank that dies just before is reported as missing although its message arrived.
    endpoint.progress[endpoint.rank].sent.store(uint32_t(sequence + 1), std::memory_order_release);
    if (endpoint.complete(sequence) && place.sleepers.load()) wake_all(place.arrived);
    return true;
}

// In rank order, so that all ranks' sums have the same bits.
template <class T>
void add_up(const Endpoint& endpoint, uint64_t sequence, T* sum, int64_t count) {
    if (!count) return;
    std::memcpy(sum, endpoint.slot(sequence, 0) + LINE, count * sizeof(T));
    for (int64_t rank = 1; rank < endpoint.world; ++rank) {
        const T* part = reinterpret_cast<const T*>(endpoint.slot(sequence, rank) + LINE);
        for (int64_t i = 0; i < count; ++i) sum[i] += part[i];
    }
}

State receive(Endpoint& endpoint, uint64_t sequence, void* sum, int64_t count, int64_t width, int64_t limit_us) {
    std::atomic<uint64_t>& unread = endpoint.unread[sequence % endpoint.ring];
    if (unread != sequence + 1) return DONE;  // read before, but a signal handler kept Python from noticing
    if (!await(endpoint, sequence, limit_us)) return WAITING;
    const Label own = endpoint.label(sequence, endpoint.rank);
    for (int64_t rank = 0; rank < endpoint.world; ++rank) {
        if (!(endpoint.label(sequence, rank) == own)) return MISMATCH;
    }
    if (width == 8) {
        add_up(endpoint, sequence, static_cast<double*>(sum), count);
    } else {
        add_up(endpoint, sequence, static_cast<float*>(sum), count);
    }
    unread = 0;
    return DONE;
}

}  // namespace

extern "C" {

// Size of the shared memory of `world` ranks with slots of `capacity` bytes.
int64_t syncbn_one_shot_bytes(int64_t world, int64_t ring, int64_t capacity) {
    return ring * LINE + world * LINE + ring * world * (LINE + capacity);
}

// This rank's endpoint; a wait polls `spins` times before it yields. `capacity` is a multiple of LINE.
void* syncbn_one_shot_join(char* memory, int64_t rank, int64_t world, int64_t ring, int64_t capacity, int64_t spins) {
    Endpoint* endpoint = new Endpoint;
    endpoint->places = reinterpret_cast<Place*>(memory);
    endpoint->progress = reinterpret_cast<Progress*>(memory + ring * LINE);
    endpoint->slots = memory + (ring + world) * LINE;
    endpoint->rank = rank;
    endpoint->world = world;
    endpoint->ring = ring;
    endpoint->stride = LINE + capacity;
    endpoint->spins = spins;
    endpoint->unread.reset(new std::atomic<uint64_t>[ring]());
    return endpoint;
}

void syncbn_one_shot_leave(Endpoint* endpoint) { delete endpoint; }

// Send `count` numbers of `width` bytes, 8 or 4: those from `begin` on of a message of `total`. The answer is
// 4 * sequence number + WAITING, or + FULL when k are in flight: the number is then that of the message to receive first.
// It is written instead of returned: when a signal handler raises, Python loses a function's result.
void syncbn_one_shot_send(Endpoint* endpoint, const void* data, int64_t count, int64_t width, int64_t total,
                          int64_t begin, int64_t* answer) {
    uint64_t sequence;
    const State state = send(*endpoint, data, count, total, begin, width, sequence) ? WAITING : FULL;
    *answer = int64_t(sequence * 4) + state;
}

// Wait for at most `limit_us`, then sum. Returns DONE, WAITING (a rank is missing, or a signal came) or MISMATCH.
int64_t syncbn_one_shot_receive(Endpoint* endpoint, int64_t sequence, void* sum, int64_t count, int64_t width,
                                int64_t limit_us) {
    return receive(*endpoint, uint64_t(sequence), sum, count, width, limit_us);
}

// Send and sum a whole message, in place. The answer is 4 * sequence number + state.
void syncbn_one_shot_sum(Endpoint* endpoint, void* data, int64_t count, int64_t width, int64_t limit_us,
                         int64_t* answer) {
    uint64_t sequence;
    State state = FULL;
    if (send(*endpoint, data, count, count, 0, width, sequence)) {
        state = receive(*endpoint, sequence, data, count, width, limit_us);
    }
    *answer = int64_t(sequence * 4) + state;
}

// Whether a rank has sent the message.
int64_t syncbn_one_shot_has_sent(const Endpoint* endpoint, int64_t sequence, int64_t rank) {
    const uint32_t sent = endpoint->progress[rank].sent.load(std::memory_order_acquire);
    return int32_t(sent - uint32_t(sequence + 1)) >= 0;
}

// Header of a rank's message: total numbers, start of this part, bytes per number.
void syncbn_one_shot_label(const Endpoint* endpoint, int64_t sequence, int64_t rank, int64_t label[3]) {
    const Label sent = endpoint->label(uint64_t(sequence), rank);
    label[0] = sent.total;
    label[1] = sent.begin;
    label[2] = sent.width;
}

}

#endif
