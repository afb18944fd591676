// The whole denoise loop of the action expert in one launch, for one chunk of pi0.5 of at most 16 actions.
//
// With so few rows every product reads weights and does little else, and a chain of kernels spends most of
// its time between them. Here every block owns 8 columns of the residual stream and a share of every matrix.
// Its share streams from memory through a ring in shared memory, always as far ahead as the ring is long,
// whatever phase the block is in:
//
//   norm, QKV, RoPE | attention over a part of the keys | combine | output projection | norm, gate/up,
//   GeGLU | down projection | ... | final norm, velocity, Euler step in float32 | next tokens
//
// Between phases all blocks need what all have written, and meet at a counter in L2. Every buffer has one
// copy: between its last reader and its next writer there is always another meeting of all. Two blocks make
// a cluster and share the depth of the output and down projections, which halves what each has to read.
//
// Layout of matrices: mma.m16n8k16 with activations as A (rows of the chunk) and weights as B (8 columns).
// A dot product does not care in which order its terms come, so each lane takes 8 neighbouring entries of
// k where the instruction would have 2 + 2: then weights and activations are both read 16 bytes at a time.
//
// Given by the compiler's command line: ROWS (actions), LAYERS, HEADS, MLP, ACTION_DIM.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short bf16;

constexpr int WIDTH = 1024;
constexpr int HEAD_DIM = 256;
constexpr int BLOCKS = WIDTH / 8;
constexpr int WARPS = 8;
constexpr int THREADS = WARPS * 32;            // that compute
constexpr int STREAMING_THREADS = 128;         // of which one asks for weights
constexpr int TILE = 16;                       // rows of a matrix instruction
static_assert(ROWS <= TILE, "");

constexpr int STAGES = 8;                      // chunks in the ring
constexpr int CHUNK = 16384;                   // bytes: 8 columns x 1024
constexpr int PIECE = 2048;                    // bytes asked for at once
constexpr int PACE = 150;                      // cycles between two requests
constexpr int CREDIT = 4 * PACE;               // how far requests may catch up
constexpr int ATTENDED = HEADS * HEAD_DIM;
constexpr int QKV_UNITS = (HEADS + 2) * HEAD_DIM / 8;
constexpr int QKV_OF_BLOCK = (QKV_UNITS + BLOCKS - 1) / BLOCKS;  // the last of some blocks is empty
constexpr int GATE_UP_UNITS = 2 * MLP / 8 / BLOCKS;
constexpr int CHUNKS_OF_LAYER = QKV_OF_BLOCK + ATTENDED / 1024 + GATE_UP_UNITS + MLP / 1024;
constexpr int NORMS = 2 * LAYERS + 1;
constexpr float EPSILON = 1e-6f;
#define INFINITY_ __int_as_float(0x7f800000)
constexpr float LEAST = -1e30f;  // below every logit, and finite: the difference of two is a number

constexpr int KEYS = 64;  // of one split
constexpr int QUERY_ROWS = ROWS * HEADS;
constexpr int GROUPS = (QUERY_ROWS + TILE - 1) / TILE;

// Row strides in bytes, chosen against bank conflicts of 16-byte reads by 8 lanes of two rows.
__device__ constexpr int padded(int columns) { return 2 * columns + 64; }
constexpr int KEY_STRIDE = padded(HEAD_DIM);
constexpr int VALUE_STRIDE = 2 * HEAD_DIM + 16;
constexpr int WEIGHT_STRIDE = 2 * KEYS + 16;
constexpr int LOGIT_STRIDE = KEYS + 4;  // floats

// Shared memory: the ring, a place to work, and what stays.
__device__ constexpr int most(int a, int b) { return a > b ? a : b; }
constexpr int WORK_AT = STAGES * CHUNK;
constexpr int KEYS_AT = WORK_AT;
constexpr int VALUES_AT = KEYS_AT + KEYS * KEY_STRIDE;
constexpr int QUERIES_AT = VALUES_AT + KEYS * VALUE_STRIDE;
constexpr int LOGITS_AT = QUERIES_AT + TILE * KEY_STRIDE;
constexpr int WEIGHTS_AT = LOGITS_AT + TILE * LOGIT_STRIDE * 4;
constexpr int ATTENTION_BYTES = WEIGHTS_AT + TILE * WEIGHT_STRIDE - WORK_AT;
constexpr int SUMS_BYTES = WARPS * most(GATE_UP_UNITS, QKV_OF_BLOCK) * TILE * 8 * 4;
constexpr int ROWS_BYTES = ROWS * padded(most(WIDTH, most(ATTENDED, MLP) / 2));
constexpr int WORK_BYTES = most(most(ROWS_BYTES, SUMS_BYTES), ATTENTION_BYTES);
constexpr int ROTATION_AT = WORK_AT + (WORK_BYTES + 127) / 128 * 128;
constexpr int PROJECT_AT = ROTATION_AT + QKV_OF_BLOCK * ROWS * 4 * 8;
constexpr int ACTIONS_AT = PROJECT_AT + 8 * ACTION_DIM * 4;
constexpr int RECEIVED_AT = ACTIONS_AT + ROWS * ACTION_DIM * 4;
constexpr int RECEIVED_BYTES = ROWS * 4 * 8;
constexpr int BARRIERS_AT = (RECEIVED_AT + RECEIVED_BYTES + 15) / 16 * 16;
constexpr int SHARED_BYTES = BARRIERS_AT + (2 * STAGES + 1) * 8;

extern "C" __constant__ const int shared_bytes = SHARED_BYTES;

struct Arguments {
    const char* weights;      // [LAYERS][BLOCKS][CHUNKS_OF_LAYER][CHUNK] bytes
    const float* scale;       // [steps][NORMS][WIDTH], 1 + s
    const float* shift;       // [steps][NORMS][WIDTH]
    const float* gate;        // [steps][2 * LAYERS][WIDTH]
    const float* rope_cos;    // [positions][HEAD_DIM / 2]
    const float* rope_sin;
    const int* length;        // [1], prefix tokens that are seen
    const int* start;         // [1], the position of the first action
    const float* noise;       // [ROWS][ACTION_DIM]
    float* actions;           // the same shape: x_t, in the end the chunk
    const float* in_weight;   // [WIDTH][ACTION_DIM]
    const float* in_bias;     // [steps][WIDTH]
    const float* out_weight;  // [ACTION_DIM][WIDTH]
    const float* out_bias;    // [ACTION_DIM]
    const bf16* keys;         // [LAYERS][prefix + ROWS][HEAD_DIM], of which the prefix is read
    const bf16* values;
    const float* times;       // [steps]
    const float* guide;       // [ROWS][ACTION_DIM], weights; 0 where a chunk is sampled plainly
    const float* target;      // [ROWS][ACTION_DIM]
    const float* gains;       // [steps]
    char* exchange;           // what blocks write for each other, see `Places`; zero at the launch
    int prefix;
    int first_step;
    int end_step;
    float time_step;
};

// --- small instructions -------------------------------------------------------------------------

extern __shared__ __align__(128) char memory[];

template <class T>
__device__ __forceinline__ T& shared(int offset) { return *reinterpret_cast<T*>(memory + offset); }
__device__ __forceinline__ u32 shared_address(int offset) { return static_cast<u32>(__cvta_generic_to_shared(memory)) + offset; }

__device__ __forceinline__ u32 pack(float low, float high) {
    u32 v;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}
__device__ __forceinline__ float low_half(u32 v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ float high_half(u32 v) { return __uint_as_float(v & 0xffff0000u); }
__device__ __forceinline__ float rounded(float v) { return low_half(pack(v, 0.0f)); }
__device__ __forceinline__ float exp2_fast(float v) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
__device__ __forceinline__ float reciprocal(float v) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
__device__ __forceinline__ float sigmoid(float v) { return reciprocal(1.0f + exp2_fast(-1.4426950408889634f * v)); }
__device__ __forceinline__ float gelu(float v) { return v * sigmoid(1.5957691216057308f * (v + 0.044715f * v * v * v)); }
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int other = 16; other > 0; other >>= 1) v += __shfl_xor_sync(0xffffffffu, v, other);
    return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int other = 16; other > 0; other >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, other));
    return v;
}
__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void copy_async(int to, const void* from, bool exists) {
    int bytes = exists ? 16 : 0;  // the rest is filled with zeros
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
// The warps that compute.
__device__ __forceinline__ void meet() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }
__device__ __forceinline__ void await_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// --- blocks exchange ----------------------------------------------------------------------------

// Written by other blocks within this launch: past L1, which does not hear of it.
__device__ __forceinline__ void load_fresh(u32& v, const void* from) {
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
}
__device__ __forceinline__ void load_fresh(uint2& v, const void* from) {
    asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from) : "memory");
}
__device__ __forceinline__ void load_fresh(uint4& v, const void* from) {
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
}
template <class T>
__device__ __forceinline__ void publish(char* to, T v) { *reinterpret_cast<T*>(to) = v; }

// A counter that only grows: everything written before an arrival is seen after a wait for it.
struct Meeting {
    u32* counter;
    u32 expected;

    // `arrivals` blocks arrive before anybody may go on; this one only if it has written something.
    __device__ void arrive(bool writes, int arrivals) {
        expected += arrivals;
        meet();
        if (writes && threadIdx.x == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    }
    __device__ void wait() const {
        if (threadIdx.x == 0) {
            u32 seen;
            do {
                asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
            } while (static_cast<int>(seen - expected) < 0);
        }
        meet();
    }
};
constexpr int COUNTER_STRIDE = 128;
constexpr int COUNTERS = 1 + GROUPS;

// Where things lie within the exchange, in bytes.
constexpr int RESIDUAL_AT = COUNTERS * COUNTER_STRIDE;             // [ROWS][WIDTH]
constexpr int NEW_QUERIES_AT = RESIDUAL_AT + ROWS * WIDTH * 2;     // [ROWS][HEADS][HEAD_DIM]
constexpr int NEW_KEYS_AT = NEW_QUERIES_AT + ROWS * ATTENDED * 2;  // [ROWS][HEAD_DIM]
constexpr int NEW_VALUES_AT = NEW_KEYS_AT + ROWS * HEAD_DIM * 2;   // [ROWS][HEAD_DIM]
constexpr int ATTENDED_AT = NEW_VALUES_AT + ROWS * HEAD_DIM * 2;   // [ROWS][HEADS][HEAD_DIM]
constexpr int HIDDEN_AT = ATTENDED_AT + ROWS * ATTENDED * 2;       // [ROWS][MLP]
constexpr int STATISTICS_AT = HIDDEN_AT + ROWS * MLP * 2;          // [GROUPS][splits][TILE][2] float
// Behind the statistics: [GROUPS][splits][TILE][HEAD_DIM] float, attention of one split.

// The other block of the cluster, which has the other half of a sum.
struct Partner {
    u32 barrier, remote_barrier, remote_received;
    u32 phase = 0;

    __device__ Partner() : barrier(shared_address(BARRIERS_AT + 2 * STAGES * 8)) {
        const u32 rank = (blockIdx.x ^ 1) & 1;
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote_barrier) : "r"(barrier), "r"(rank));
        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote_received) : "r"(shared_address(RECEIVED_AT)), "r"(rank));
    }
    __device__ void send(int offset, float2 v) const {
        asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];"
            ::"r"(remote_received + offset), "f"(v.x), "f"(v.y), "r"(remote_barrier) : "memory");
    }
    __device__ float2 receive(int offset) {
        if (threadIdx.x == 0)
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "n"(RECEIVED_BYTES) : "memory");
        u32 done = 0;
        while (!done) {
            asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                : "=r"(done) : "r"(barrier), "r"(phase) : "memory");
        }
        phase ^= 1;
        return shared<float2>(RECEIVED_AT + offset);
    }
};

// --- weights arrive -----------------------------------------------------------------------------

// This block's weights, chunk after chunk in the order of their use, on their way to the warps that compute.
struct Ring {
    u32 full, empty;
    int stage = 0;
    u32 phase = 0;

    __device__ Ring() : full(shared_address(BARRIERS_AT)), empty(full + STAGES * 8) {}

    __device__ static void await(u32 barrier, u32 parity) {
        u32 done = 0;
        while (!done) {
            asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
        }
    }
    __device__ void advance() {
        if (++stage == STAGES) { stage = 0; phase ^= 1; }
    }
    // Wait for the next chunk; returns its stage.
    __device__ int next() {
        const int mine = stage;
        await(full + mine * 8, phase);
        advance();
        return mine;
    }
    // This warp has read the chunk.
    __device__ void release(int mine) const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(empty + mine * 8) : "memory");
    }
    // One thread asks for everything, at an even pace: what the blocks exchange would queue up behind a burst.
    __device__ void stream(const Arguments& in) {
        u64 policy;
        asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
        u32 due = clock();
        for (int step = in.first_step; step < in.end_step; step++)
            for (int layer = 0; layer < LAYERS; layer++) {
                const char* from = in.weights + (static_cast<u64>(layer) * BLOCKS + blockIdx.x) * CHUNKS_OF_LAYER * CHUNK;
                for (int chunk = 0; chunk < CHUNKS_OF_LAYER; chunk++) {
                    await(empty + stage * 8, phase ^ 1);
                    const u32 barrier = full + stage * 8;
                    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "n"(CHUNK) : "memory");
                    for (int piece = 0; piece < CHUNK; piece += PIECE) {
                        const u32 now = clock();
                        if (static_cast<int>(now - due) > CREDIT) due = now - CREDIT;
                        while (static_cast<int>(clock() - due) < 0) {}
                        due += PACE;
                        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
                            ::"r"(shared_address(stage * CHUNK + piece)), "l"(from + chunk * CHUNK + piece), "n"(PIECE), "r"(barrier), "l"(policy) : "memory");
                    }
                    advance();
                }
            }
    }
};

// --- products -----------------------------------------------------------------------------------

// sums += A W^T over 1024 entries of k, for UNITS units of 8 columns. A lies in shared memory, W comes
// through the ring. Warps split the depth.
template <int UNITS>
__device__ __forceinline__ void accumulate(float (&sums)[UNITS][4], Ring& ring, int a, int stride) {
    constexpr int STEPS = 1024 / 32 / WARPS;
    static_assert(UNITS <= STAGES, "");
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // Rows that do not exist repeat the last one; their sums are never used.
    const int low = a + min(lane / 4, ROWS - 1) * stride + (warp * STEPS * 4 + lane % 4) * 16;
    const int high = a + min(lane / 4 + 8, ROWS - 1) * stride + (warp * STEPS * 4 + lane % 4) * 16;
    uint4 first[STEPS], second[STEPS];
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        first[step] = shared<uint4>(low + step * 64);
        second[step] = shared<uint4>(high + step * 64);
    }
    // Several units at once, and each in two sums: a matrix instruction waits for the one before it.
    constexpr int AT_ONCE = UNITS % 4 == 0 ? 4 : UNITS;
#pragma unroll
    for (int start = 0; start < UNITS; start += AT_ONCE) {
        int stages[AT_ONCE];
        float odd[AT_ONCE][4] = {};
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) stages[i] = ring.next();
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            uint4 b[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) b[i] = shared<uint4>(stages[i] * CHUNK + ((warp * STEPS + step) * 32 + lane) * 16);
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) multiply(sums[start + i], first[step].x, second[step].x, first[step].y, second[step].y, b[i].x, b[i].y);
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) multiply(odd[i], first[step].z, second[step].z, first[step].w, second[step].w, b[i].z, b[i].w);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            ring.release(stages[i]);
#pragma unroll
            for (int entry = 0; entry < 4; entry++) sums[start + i][entry] += odd[i][entry];
        }
    }
}

// Lay the warps' sums over A, which nobody reads any more: [WARPS][UNITS][TILE][8] floats.
template <int UNITS>
__device__ __forceinline__ void spread(const float (&sums)[UNITS][4]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    meet();
#pragma unroll
    for (int unit = 0; unit < UNITS; unit++) {
        const int at = WORK_AT + (((warp * UNITS + unit) * TILE + lane / 4) * 8 + lane % 4 * 2) * 4;
        shared<float2>(at) = make_float2(sums[unit][0], sums[unit][1]);
        shared<float2>(at + 8 * 8 * 4) = make_float2(sums[unit][2], sums[unit][3]);
    }
    meet();
}

// Two neighbouring columns of a product, summed over the warps in a fixed order.
template <int UNITS>
__device__ __forceinline__ float2 gathered(int unit, int row, int pair) {
    float2 total = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
        const float2 v = shared<float2>(WORK_AT + (((warp * UNITS + unit) * TILE + row) * 8 + pair * 2) * 4);
        total.x += v.x;
        total.y += v.y;
    }
    return total;
}

// --- the block ----------------------------------------------------------------------------------

struct Modulation {
    float4 scale[8], shift[8];

    // Does not depend on other blocks: asked for ahead.
    __device__ void load(const Arguments& in, int step, int norm) {
        const u64 base = (static_cast<u64>(step) * NORMS + norm) * WIDTH + threadIdx.x % 32 * 8;
#pragma unroll
        for (int part = 0; part < 8; part++) {
            const u64 at = base + part / 2 * 256 + part % 2 * 4;
            scale[part] = *reinterpret_cast<const float4*>(in.scale + at);
            shift[part] = *reinterpret_cast<const float4*>(in.shift + at);
        }
    }
    __device__ static u32 normed(u32 v, float factor, float s0, float s1, float b0, float b1) {
        return pack(low_half(v) * factor * s0 + b0, high_half(v) * factor * s1 + b1);
    }
    __device__ uint4 apply(uint4 v, float factor, int part) const {
        const float4 s = scale[2 * part], z = scale[2 * part + 1], b = shift[2 * part], c = shift[2 * part + 1];
        return make_uint4(normed(v.x, factor, s.x, s.y, b.x, b.y), normed(v.y, factor, s.z, s.w, b.z, b.w),
                          normed(v.z, factor, z.x, z.y, c.x, c.y), normed(v.w, factor, z.z, z.w, c.z, c.w));
    }
};

__device__ __forceinline__ float squares(u32 v) { return low_half(v) * low_half(v) + high_half(v) * high_half(v); }

// RMS factor of a row that a warp holds.
__device__ __forceinline__ float rms_factor(const uint4* v) {
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < 4; part++) sum += squares(v[part].x) + squares(v[part].y) + squares(v[part].z) + squares(v[part].w);
    return rsqrtf(warp_sum(sum) / WIDTH + EPSILON);
}

struct Block {
    const Arguments& in;
    const int index, splits;
    const int length;  // prefix tokens that are seen
    Ring ring;
    Meeting all, group;
    Partner partner;
    float2 own;                           // two columns of one row of the residual
    float own_action[ACTION_DIM / WARPS];  // entries of x_t that this warp integrates

    __device__ explicit Block(const Arguments& arguments)
        : in(arguments), index(blockIdx.x), splits((arguments.prefix + ROWS + KEYS - 1) / KEYS), length(*arguments.length),
          all{counter(0), 0}, group{counter(1 + index / splits), 0}, own(make_float2(0.0f, 0.0f)) {}

    __device__ u32* counter(int number) const { return reinterpret_cast<u32*>(in.exchange + number * COUNTER_STRIDE); }
    __device__ int own_row() const { return threadIdx.x / 4; }
    __device__ bool owns() const { return threadIdx.x < ROWS * 4; }
    __device__ int own_column() const { return index * 8 + threadIdx.x % 4 * 2; }
    __device__ void publish_own() const {
        if (owns()) publish(in.exchange + RESIDUAL_AT + (own_row() * WIDTH + own_column()) * 2, pack(own.x, own.y));
    }

    // --- inputs of products, as A in shared memory

    __device__ void load_normed(const Modulation& modulation) const {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        constexpr int ROWS_OF_WARP = (ROWS + WARPS - 1) / WARPS;
        uint4 v[ROWS_OF_WARP][4];
#pragma unroll
        for (int i = 0; i < ROWS_OF_WARP; i++)
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const int row = i * WARPS + warp;
                if (row < ROWS) load_fresh(v[i][part], in.exchange + RESIDUAL_AT + (row * WIDTH + part * 256 + lane * 8) * 2);
            }
#pragma unroll
        for (int i = 0; i < ROWS_OF_WARP; i++) {
            const int row = i * WARPS + warp;
            if (row >= ROWS) continue;
            const float factor = rms_factor(v[i]);
#pragma unroll
            for (int part = 0; part < 4; part++)
                shared<uint4>(WORK_AT + row * padded(WIDTH) + (part * 256 + lane * 8) * 2) = modulation.apply(v[i][part], factor, part);
        }
        meet();
    }

    // This block's half of the columns of a [ROWS][2 * DEPTH] buffer.
    template <int DEPTH>
    __device__ void load_half(const char* source) const {
        constexpr int VECTORS = DEPTH / 8;
        source += index % 2 * DEPTH * 2;
#pragma unroll
        for (int i = 0; i < (ROWS * VECTORS + THREADS - 1) / THREADS; i++) {
            const int vector = i * THREADS + threadIdx.x, row = vector / VECTORS, column = vector % VECTORS;
            if (row < ROWS) copy_async(WORK_AT + row * padded(DEPTH) + column * 16, source + (row * 2 * DEPTH + column * 8) * 2, true);
        }
        await_copies();
        meet();
    }

    // --- queries, keys, values

    __device__ void project_qkv() {
        float sums[QKV_OF_BLOCK][4] = {};
        accumulate<QKV_OF_BLOCK>(sums, ring, WORK_AT, padded(WIDTH));
        spread<QKV_OF_BLOCK>(sums);
        for (int i = threadIdx.x; i < QKV_OF_BLOCK * ROWS * 4; i += THREADS) {
            const int unit = i / (ROWS * 4), row = i / 4 % ROWS, pair = i % 4;
            const int column = (index + unit * BLOCKS) * 8 + pair * 2;
            if (column >= ATTENDED + 2 * HEAD_DIM) continue;
            float2 v = gathered<QKV_OF_BLOCK>(unit, row, pair);
            if (column < ATTENDED + HEAD_DIM) {
                const float2 turn = shared<float2>(ROTATION_AT + i * 8);
                v = make_float2(v.x * turn.x - v.y * turn.y, v.y * turn.x + v.x * turn.y);
            }
            int to = NEW_QUERIES_AT + (row * ATTENDED + column) * 2;
            if (column >= ATTENDED) to = (column < ATTENDED + HEAD_DIM ? NEW_KEYS_AT : NEW_VALUES_AT) + (row * HEAD_DIM + column % HEAD_DIM) * 2;
            publish(in.exchange + to, pack(v.x, v.y));
        }
    }

    __device__ void prepare_rotation() const {
        for (int i = threadIdx.x; i < QKV_OF_BLOCK * ROWS * 4; i += THREADS) {
            const int row = i / 4 % ROWS, column = (index + i / (ROWS * 4) * BLOCKS) * 8 + i % 4 * 2;
            if (column < ATTENDED + HEAD_DIM) {
                const int angle = (*in.start + row) * (HEAD_DIM / 2) + column % HEAD_DIM / 2;
                shared<float2>(ROTATION_AT + i * 8) = make_float2(in.rope_cos[angle], in.rope_sin[angle]);
            }
        }
    }

    // --- attention: a block attends with one tile of query rows (a row and a head each) to one split of the keys

    __device__ bool attends() const { return index < GROUPS * splits; }
    __device__ int first_query() const { return index / splits * TILE; }
    __device__ int first_key() const { return index % splits * KEYS; }
    __device__ const char* prefix_rows(const bf16* cache, int layer, int row) const {
        return reinterpret_cast<const char*>(cache + (static_cast<u64>(layer) * (in.prefix + ROWS) + row) * HEAD_DIM);
    }

    // Ask for the split's prefix keys and values to be in L2 by the time they are copied.
    __device__ void prefetch_prefix(int layer) const {
        const int row = min(first_key() + static_cast<int>(threadIdx.x) / 4, in.prefix - 1);
        const int offset = threadIdx.x % 4 * 128;
        asm volatile("prefetch.global.L2 [%0];" ::"l"(prefix_rows(in.keys, layer, row) + offset));
        asm volatile("prefetch.global.L2 [%0];" ::"l"(prefix_rows(in.values, layer, row) + offset));
    }

    // Older than this launch: copied before the others are there.
    __device__ void load_prefix(int layer) const {
        const int warp = threadIdx.x / 32, offset = threadIdx.x % 32 * 16;
        const char* keys = prefix_rows(in.keys, layer, 0) + offset;
        const char* values = prefix_rows(in.values, layer, 0) + offset;
#pragma unroll
        for (int i = 0; i < KEYS / WARPS; i++) {
            const int key = i * WARPS + warp, position = first_key() + key;
            if (position >= in.prefix && position < in.prefix + ROWS) continue;
            const bool exists = position < length;
            const int from = exists ? position * HEAD_DIM * 2 : 0;
            copy_async(KEYS_AT + key * KEY_STRIDE + offset, keys + from, exists);
            copy_async(VALUES_AT + key * VALUE_STRIDE + offset, values + from, exists);
        }
    }

    // What this layer's QKV phase has made.
    __device__ void load_suffix() const {
        const int warp = threadIdx.x / 32, offset = threadIdx.x % 32 * 16;
#pragma unroll
        for (int i = 0; i < TILE / WARPS; i++) {
            const int row = i * WARPS + warp, query = first_query() + row;
            copy_async(QUERIES_AT + row * KEY_STRIDE + offset, in.exchange + NEW_QUERIES_AT + min(query, QUERY_ROWS - 1) * HEAD_DIM * 2 + offset, true);
        }
#pragma unroll
        for (int i = 0; i < (ROWS + WARPS - 1) / WARPS; i++) {
            const int row = i * WARPS + warp, key = in.prefix + row - first_key();
            if (row >= ROWS || key < 0 || key >= KEYS) continue;
            copy_async(KEYS_AT + key * KEY_STRIDE + offset, in.exchange + NEW_KEYS_AT + row * HEAD_DIM * 2 + offset, true);
            copy_async(VALUES_AT + key * VALUE_STRIDE + offset, in.exchange + NEW_VALUES_AT + row * HEAD_DIM * 2 + offset, true);
        }
        await_copies();
        meet();
    }

    __device__ void attend() const {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        float logits[4] = {};
        const int key = KEYS_AT + (warp * 8 + lane / 4) * KEY_STRIDE + lane % 4 * 16;
        const int query = QUERIES_AT + lane / 4 * KEY_STRIDE + lane % 4 * 16;
#pragma unroll
        for (int block = 0; block < HEAD_DIM / 32; block++) {
            const uint4 b = shared<uint4>(key + block * 64);
            const uint4 low = shared<uint4>(query + block * 64), high = shared<uint4>(query + 8 * KEY_STRIDE + block * 64);
            multiply(logits, low.x, high.x, low.y, high.y, b.x, b.y);
            multiply(logits, low.z, high.z, low.w, high.w, b.z, b.w);
        }
        const int to = LOGITS_AT + (lane / 4 * LOGIT_STRIDE + warp * 8 + lane % 4 * 2) * 4;
        shared<float2>(to) = make_float2(logits[0], logits[1]);
        shared<float2>(to + 8 * LOGIT_STRIDE * 4) = make_float2(logits[2], logits[3]);
        meet();
        softmax();
        meet();
        float mixed[4][4] = {};
#pragma unroll
        for (int block = 0; block < KEYS / 16; block++) {
            u32 b[4][2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int from = VALUES_AT + (block * 16 + lane % 16) * VALUE_STRIDE + (warp * 32 + half * 16 + lane / 16 * 8) * 2;
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                    : "=r"(b[2 * half][0]), "=r"(b[2 * half][1]), "=r"(b[2 * half + 1][0]), "=r"(b[2 * half + 1][1])
                    : "r"(shared_address(from)) : "memory");
            }
            const int from = WEIGHTS_AT + lane / 4 * WEIGHT_STRIDE + (block * 16 + lane % 4 * 2) * 2;
            const u32 a0 = shared<u32>(from), a1 = shared<u32>(from + 8 * WEIGHT_STRIDE);
            const u32 a2 = shared<u32>(from + 16), a3 = shared<u32>(from + 8 * WEIGHT_STRIDE + 16);
#pragma unroll
            for (int n = 0; n < 4; n++) multiply(mixed[n], a0, a1, a2, a3, b[n][0], b[n][1]);
        }
        char* out = in.exchange + STATISTICS_AT + GROUPS * splits * TILE * 8 + index * TILE * HEAD_DIM * 4;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            char* at = out + (lane / 4 * HEAD_DIM + warp * 32 + n * 8 + lane % 4 * 2) * 4;
            publish(at, make_float2(mixed[n][0], mixed[n][1]));
            publish(at + 8 * HEAD_DIM * 4, make_float2(mixed[n][2], mixed[n][3]));
        }
    }

    // Logits to weights relative to the split's own maximum, and both statistics of each row.
    __device__ void softmax() const {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        constexpr float TO_BASE_2 = 1.4426950408889634f / 16.0f;
        static_assert(HEAD_DIM == 256, "its root is 16");
#pragma unroll
        for (int i = 0; i < TILE / WARPS; i++) {
            const int row = i * WARPS + warp;
            float logit[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int position = first_key() + half * 32 + lane;
                const bool seen = position < length || (position >= in.prefix && position < in.prefix + ROWS);
                logit[half] = seen ? shared<float>(LOGITS_AT + (row * LOGIT_STRIDE + half * 32 + lane) * 4) * TO_BASE_2 : -INFINITY_;
            }
            const float highest = warp_max(fmaxf(logit[0], logit[1]));
            const float reference = highest == -INFINITY_ ? 0.0f : highest;
            const float weight[2] = {exp2_fast(logit[0] - reference), exp2_fast(logit[1] - reference)};
            const float total = warp_sum(weight[0] + weight[1]);
#pragma unroll
            for (int half = 0; half < 2; half++)
                shared<bf16>(WEIGHTS_AT + row * WEIGHT_STRIDE + (half * 32 + lane) * 2) = static_cast<bf16>(pack(weight[half], 0.0f));
            if (lane == 0) publish(in.exchange + STATISTICS_AT + (index * TILE + row) * 8, make_float2(highest, total));
        }
    }

    // This split's share of its group's rows, combined over all splits.
    __device__ void combine() const {
        constexpr int VECTORS = TILE * HEAD_DIM / 4, AT_ONCE = 10;
        const int first = index / splits * splits, split = index % splits;
        const char* statistics = in.exchange + STATISTICS_AT + first * TILE * 8;
        const char* parts = in.exchange + STATISTICS_AT + GROUPS * splits * TILE * 8 + first * TILE * HEAD_DIM * 4;
        for (int vector = split * VECTORS / splits + threadIdx.x; vector < (split + 1) * VECTORS / splits; vector += THREADS) {
            const int row = vector / (HEAD_DIM / 4);
            float peak = LEAST, total = 0.0f;
            float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            for (int start = 0; start < splits; start += AT_ONCE) {
                uint4 part[AT_ONCE];
                uint2 theirs[AT_ONCE];
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) {
                    const int other = min(start + i, splits - 1);
                    load_fresh(theirs[i], statistics + (other * TILE + row) * 8);
                    load_fresh(part[i], parts + (other * TILE * HEAD_DIM + vector * 4) * 4);
                }
                float top = peak;
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) top = fmaxf(top, __uint_as_float(theirs[i].x));
                const float before = exp2_fast(peak - top);
                total *= before;
                sum = make_float4(sum.x * before, sum.y * before, sum.z * before, sum.w * before);
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) {
                    const float now = start + i < splits ? exp2_fast(__uint_as_float(theirs[i].x) - top) : 0.0f;
                    total += __uint_as_float(theirs[i].y) * now;
                    sum.x += __uint_as_float(part[i].x) * now;
                    sum.y += __uint_as_float(part[i].y) * now;
                    sum.z += __uint_as_float(part[i].z) * now;
                    sum.w += __uint_as_float(part[i].w) * now;
                }
                peak = top;
            }
            if (first_query() + row < QUERY_ROWS) {
                const float factor = 1.0f / total;
                publish(in.exchange + ATTENDED_AT + (first_query() * HEAD_DIM + vector * 4) * 2,
                        make_uint2(pack(sum.x * factor, sum.y * factor), pack(sum.z * factor, sum.w * factor)));
            }
        }
    }

    // --- projections back into the residual

    template <int DEPTH>
    __device__ void project(int source, float2 gate) {
        load_half<DEPTH / 2>(in.exchange + source);
        float sums[2][4] = {};
#pragma unroll
        for (int part = 0; part < DEPTH / 2048; part++) accumulate<2>(sums, ring, WORK_AT + part * 2048, padded(DEPTH / 2));
        spread<2>(sums);
        if (owns()) {
            const int pair = threadIdx.x % 4;
            partner.send(threadIdx.x * 8, gathered<2>(index % 2 ^ 1, own_row(), pair));
            float2 v = gathered<2>(index % 2, own_row(), pair);
            const float2 theirs = partner.receive(threadIdx.x * 8);
            own.x = rounded(own.x + (v.x + theirs.x) * gate.x);
            own.y = rounded(own.y + (v.y + theirs.y) * gate.y);
        }
        publish_own();
    }
    __device__ float2 load_gate(int step, int branch) const {
        return *reinterpret_cast<const float2*>(in.gate + (static_cast<u64>(step) * 2 * LAYERS + branch) * WIDTH + own_column());
    }

    __device__ void gate_up() {
        float sums[GATE_UP_UNITS][4] = {};
        accumulate<GATE_UP_UNITS>(sums, ring, WORK_AT, padded(WIDTH));
        spread<GATE_UP_UNITS>(sums);
        constexpr int HALF = GATE_UP_UNITS / 2;
        for (int i = threadIdx.x; i < HALF * ROWS * 4; i += THREADS) {
            const int row = i / (HALF * 4), unit = i / 4 % HALF, pair = i % 4;
            const float2 gate = gathered<GATE_UP_UNITS>(2 * unit, row, pair);
            const float2 up = gathered<GATE_UP_UNITS>(2 * unit + 1, row, pair);
            publish(in.exchange + HIDDEN_AT + (row * MLP + (index * HALF + unit) * 8 + pair * 2) * 2, pack(gelu(gate.x) * up.x, gelu(gate.y) * up.y));
        }
    }

    // --- between two passes

    __device__ bool integrates() const { return index < ROWS; }

    // One block an action: velocity from the final norm, then x_t += time_step * velocity, and the pull towards
    // an earlier chunk where there is one (`model/guided_flow.py`).
    __device__ void euler_step(int step) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        Modulation modulation;
        modulation.load(in, step, NORMS - 1);
        uint4 v[4];
#pragma unroll
        for (int part = 0; part < 4; part++) load_fresh(v[part], in.exchange + RESIDUAL_AT + (index * WIDTH + part * 256 + lane * 8) * 2);
        const float factor = rms_factor(v);
#pragma unroll
        for (int part = 0; part < 4; part++) v[part] = modulation.apply(v[part], factor, part);
#pragma unroll
        for (int i = 0; i < ACTION_DIM / WARPS; i++) {
            const int action = i * WARPS + warp;
            float sum = 0.0f;
#pragma unroll
            for (int part = 0; part < 4; part++) {
                const float4* weight = reinterpret_cast<const float4*>(in.out_weight + action * WIDTH + part * 256 + lane * 8);
                const float4 a = weight[0], b = weight[1];
                sum += a.x * low_half(v[part].x) + a.y * high_half(v[part].x) + a.z * low_half(v[part].y) + a.w * high_half(v[part].y);
                sum += b.x * low_half(v[part].z) + b.y * high_half(v[part].z) + b.z * low_half(v[part].w) + b.w * high_half(v[part].w);
            }
            const float velocity = warp_sum(sum) + in.out_bias[action], before = own_action[i];
            own_action[i] = before + in.time_step * velocity;
            const int place = index * ACTION_DIM + action;
            if (in.guide[place] != 0.0f)
                own_action[i] += in.gains[step] * in.guide[place] * (in.target[place] - (before - in.times[step] * velocity));
            if (lane == 0) in.actions[place] = own_action[i];
        }
    }

    __device__ const float* actions_before(int step) const { return step == 0 ? in.noise : in.actions; }

    // This block's columns of the tokens that begin a pass.
    __device__ void make_tokens(int step) {
        const char* from = reinterpret_cast<const char*>(actions_before(step));
        for (int i = threadIdx.x; i < ROWS * ACTION_DIM; i += THREADS) load_fresh(shared<u32>(ACTIONS_AT + i * 4), from + i * 4);
        meet();
        if (owns()) {
            own = *reinterpret_cast<const float2*>(in.in_bias + step * WIDTH + own_column());
            const int weight = PROJECT_AT + threadIdx.x % 4 * 2 * ACTION_DIM * 4;
#pragma unroll 8
            for (int i = 0; i < ACTION_DIM; i++) {
                const float x = shared<float>(ACTIONS_AT + (own_row() * ACTION_DIM + i) * 4);
                own.x += x * shared<float>(weight + i * 4);
                own.y += x * shared<float>(weight + (ACTION_DIM + i) * 4);
            }
            own = make_float2(rounded(own.x), rounded(own.y));
        }
        publish_own();
    }

    __device__ void prepare() {
        for (int i = threadIdx.x; i < 8 * ACTION_DIM; i += THREADS) shared<float>(PROJECT_AT + i * 4) = in.in_weight[index * 8 * ACTION_DIM + i];
        if (integrates()) {
#pragma unroll
            for (int i = 0; i < ACTION_DIM / WARPS; i++)
                own_action[i] = actions_before(in.first_step)[index * ACTION_DIM + i * WARPS + threadIdx.x / 32];
        }
        prepare_rotation();
        meet();
    }

    __device__ void compute() {
        prepare();
        Modulation modulation;
        for (int step = in.first_step; step < in.end_step; step++) {
            make_tokens(step);
            all.arrive(true, BLOCKS);
            modulation.load(in, step, 0);
            for (int layer = 0; layer < LAYERS; layer++) {
                if (attends()) prefetch_prefix(layer);
                all.wait();
                load_normed(modulation);
                project_qkv();
                all.arrive(true, BLOCKS);
                float2 gate = load_gate(step, 2 * layer);
                if (attends()) {
                    load_prefix(layer);
                    all.wait();
                    load_suffix();
                    attend();
                    group.arrive(true, splits);
                    group.wait();
                    combine();
                }
                all.arrive(attends(), GROUPS * splits);
                all.wait();
                project<ATTENDED>(ATTENDED_AT, gate);
                all.arrive(true, BLOCKS);
                modulation.load(in, step, 2 * layer + 1);
                all.wait();
                load_normed(modulation);
                gate_up();
                all.arrive(true, BLOCKS);
                gate = load_gate(step, 2 * layer + 1);
                all.wait();
                project<MLP>(HIDDEN_AT, gate);
                all.arrive(true, BLOCKS);
                if (layer + 1 < LAYERS) modulation.load(in, step, 2 * layer + 2);
            }
            if (integrates()) {
                all.wait();
                euler_step(step);
            }
            all.arrive(integrates(), ROWS);
            all.wait();
        }
    }
};

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS + STREAMING_THREADS, 1)
denoise_loop(const __grid_constant__ Arguments in) {
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(BARRIERS_AT + stage * 8)) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(BARRIERS_AT + (STAGES + stage) * 8)), "n"(WARPS) : "memory");
        }
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(BARRIERS_AT + 2 * STAGES * 8)) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
    // Two warpgroups compute, and take the registers that the third can spare.
    if (threadIdx.x < THREADS) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        Block(in).compute();
    } else {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == THREADS) Ring().stream(in);
    }
}
