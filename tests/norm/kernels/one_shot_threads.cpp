// The C++ part of the one-shot exchange under a sanitizer: threads take the place of ranks.
//
//     one_shot_threads WORLD IN_FLIGHT MESSAGES SPINS
//
// Every rank sends, reads late, sleeps at random, and compares every sum with one that it adds up itself. Counters start
// shortly before they wrap around.

#include "../../../syncbn/norm/kernels/one_shot.cpp"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <random>
#include <thread>
#include <vector>

namespace {

constexpr int64_t SLOT = 1024;  // bytes
constexpr int64_t SLICES_US[] = {1000, 60000000};  // the long one only ends early by a wake-up

double part(int64_t rank, uint64_t sequence, int64_t i) {
    return 1.0 / (1 + rank + int64_t(sequence % 1000)) + 1e-3 * double(i * (rank + 1));
}

struct Sent {
    uint64_t sequence;
    std::vector<double> numbers;
};

struct Rank {
    Endpoint* end;
    int64_t rank, world, messages;
    uint64_t wrong = 0;
    std::deque<Sent> unread;
    std::mt19937 random;

    int64_t length(uint64_t sequence) const { return int64_t((sequence * 31) % (SLOT / 8 + 1)); }

    int64_t slice_us() { return SLICES_US[random() % 2]; }

    void read(size_t at) {
        Sent& sent = unread[at];
        const int64_t count = int64_t(sent.numbers.size());
        int64_t state;
        do {
            const int64_t sequence = int64_t(sent.sequence);
            state = syncbn_one_shot_receive(end, sequence, sent.numbers.data(), count, 8, slice_us());
        } while (state == WAITING);
        if (state != DONE) ++wrong;
        check(sent.sequence, sent.numbers);
        unread.erase(unread.begin() + std::ptrdiff_t(at));
    }

    void check(uint64_t sequence, const std::vector<double>& sum) {
        for (int64_t i = 0; i < int64_t(sum.size()); ++i) {
            double expected = part(0, sequence, i);
            for (int64_t r = 1; r < world; ++r) expected += part(r, sequence, i);
            if (sum[size_t(i)] != expected) ++wrong;
        }
    }

    void send(uint64_t sequence, bool at_once) {
        std::vector<double> numbers(size_t(length(sequence)));
        const int64_t count = int64_t(numbers.size());
        for (int64_t i = 0; i < count; ++i) numbers[size_t(i)] = part(rank, sequence, i);
        int64_t answer;
        while (true) {
            if (at_once) {
                syncbn_one_shot_sum(end, numbers.data(), count, 8, slice_us(), &answer);
            } else {
                syncbn_one_shot_send(end, numbers.data(), count, 8, count, 0, &answer);
            }
            if (answer % 4 != FULL) break;
            if (uint64_t(answer / 4) != unread.front().sequence) ++wrong;  // always the oldest
            read(0);
        }
        if (uint64_t(answer / 4) != sequence) ++wrong;
        if (answer % 4 == DONE) {
            check(sequence, numbers);
        } else {
            unread.push_back({sequence, std::move(numbers)});
            if (at_once) read(unread.size() - 1);
        }
    }

    void run() {
        random.seed(unsigned(rank));
        const uint64_t first = end->next;
        for (uint64_t sequence = first; sequence < first + uint64_t(messages); ++sequence) {
            if (random() % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
            send(sequence, random() % 2);
            if (!unread.empty() && random() % 3 == 0) read(random() % unread.size());  // in any order
        }
        while (!unread.empty()) read(0);
    }
};

}  // namespace

int main(int, char** arguments) {
    const int64_t world = std::atoll(arguments[1]), in_flight = std::atoll(arguments[2]);
    const int64_t messages = std::atoll(arguments[3]), spins = std::atoll(arguments[4]);
    const int64_t ring = 2 * in_flight;
    const size_t bytes = size_t(syncbn_one_shot_bytes(world, ring, SLOT));
    char* memory = static_cast<char*>(std::aligned_alloc(LINE, bytes));
    std::memset(memory, 0, bytes);

    // As after so many messages that the counters of all places wrap around soon: 2^32 / world messages each.
    const uint64_t rounds = (uint64_t(1) << 32) / uint64_t(world) - uint64_t(messages / ring / 2);
    std::vector<Rank> ranks(static_cast<size_t>(world));
    for (int64_t rank = 0; rank < world; ++rank) {
        void* end = syncbn_one_shot_join(memory, rank, world, ring, SLOT, spins);
        ranks[size_t(rank)].end = static_cast<Endpoint*>(end);
        ranks[size_t(rank)].end->next = rounds * uint64_t(ring);
        ranks[size_t(rank)].rank = rank;
        ranks[size_t(rank)].world = world;
        ranks[size_t(rank)].messages = messages;
        ranks[size_t(rank)].end->progress[rank].sent = uint32_t(rounds * uint64_t(ring));
    }
    for (int64_t i = 0; i < ring; ++i) ranks[0].end->places[i].arrived = uint32_t(rounds * uint64_t(world));

    std::vector<std::thread> threads;
    for (Rank& rank : ranks) threads.emplace_back([&rank] { rank.run(); });
    for (std::thread& thread : threads) thread.join();
    uint64_t wrong = 0;
    for (Rank& rank : ranks) {
        wrong += rank.wrong;
        syncbn_one_shot_leave(rank.end);
    }
    std::free(memory);
    std::printf("%llu wrong\n", static_cast<unsigned long long>(wrong));
    return wrong != 0;
}
