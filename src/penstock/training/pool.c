/* A pool whose addresses were planned beforehand (SmartPool, arXiv 1903.06631).

   Preloaded, it takes over posix_memalign, by which torch allocates on the CPU, and free. While it records, it notes
   each large allocation of the thread that asked for it, and its release. While it follows a plan, the same thread's
   allocations get the planned places in one arena, in their order; whatever departs from the plan, or finds its place
   still taken, gets ordinary memory. Nothing of the present plan is given back to the system: a place is used anew by
   the next iteration without a page fault. What was left in the arena of an earlier plan is, as it is freed.

   The same for a CUDA device is at the end: two functions for torch.cuda.memory.CUDAPluggableAllocator. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

enum { PAGE = 4096, ARENAS = 256, LOOKAHEAD = 64, ALLOCATED = 1, RELEASED = 2, MARKED = 3 };

typedef struct {
    int64_t kind;
    int64_t value; /* bytes allocated, or which allocation was released, or which mark */
} entry_t;

extern void __libc_free(void *);

static int (*real_memalign)(void **, size_t, size_t);
static void (*real_free)(void *);
static __thread int is_resolving;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread int is_followed; /* this thread's allocations are recorded, or planned */
static size_t least_nbytes = SIZE_MAX;

/* recording */
static volatile int is_recording;
static entry_t *entries;
static int64_t entry_count, entry_capacity, allocation_count;
static uintptr_t *live_keys; /* open addressing; 0: never used, 1: used and free again */
static int64_t *live_values, live_capacity, live_used;

/* following: blocks of earlier plans live on in their arenas */
typedef struct {
    uintptr_t begin, end;
    unsigned char *is_taken; /* of each page */
    int64_t *counts;         /* pages of the block that begins at this one */
} arena_t;

typedef struct {
    arena_t *arena;
    const int64_t *nbytes, *offsets; /* of the allocations to come, in their order */
    int64_t count, next;
    int64_t followed, departed, taken; /* allocations in their place, not in the plan, and whose place was taken */
} plan_t;

static arena_t arenas[ARENAS];
static int arena_count;
static volatile int is_following;
static volatile uintptr_t lowest = UINTPTR_MAX, highest; /* of the host's arenas */
static plan_t host_plan, cuda_plan;

/* The next library's, which need not be the C library's: other allocators are preloaded, too. */
static void resolve(void) {
    is_resolving = 1;
    real_memalign = (int (*)(void **, size_t, size_t))dlsym(RTLD_NEXT, "posix_memalign");
    real_free = (void (*)(void *))dlsym(RTLD_NEXT, "free");
    is_resolving = 0;
}

/* A forked child is another process: it records and follows nothing, and nobody holds its lock. */
static void after_fork(void) {
    pthread_mutex_init(&lock, NULL);
    is_recording = is_following = is_followed = 0;
    cuda_plan.count = 0;
    least_nbytes = SIZE_MAX;
}

__attribute__((constructor)) static void begin(void) {
    resolve();
    pthread_atfork(NULL, NULL, after_fork);
}

static void note(int64_t kind, int64_t value) {
    if (entry_count < entry_capacity) {
        entries[entry_count].kind = kind;
        entries[entry_count].value = value;
    }
    entry_count++;
}

static int64_t slot_of(uintptr_t key, int is_new) {
    int64_t slot = (int64_t)((key >> 6) * 0x9E3779B97F4A7C15ull % (uint64_t)live_capacity), first_free = -1;
    for (int64_t tried = 0; tried < live_capacity; tried++, slot = (slot + 1) % live_capacity) {
        if (live_keys[slot] == key) return slot;
        if (live_keys[slot] == 1 && first_free < 0) first_free = slot;
        if (live_keys[slot] == 0) return is_new ? (first_free >= 0 ? first_free : slot) : -1;
    }
    return is_new ? first_free : -1;
}

static int take_pages(arena_t *arena, int64_t offset, int64_t nbytes) {
    int64_t page = offset / PAGE, count = (nbytes + PAGE - 1) / PAGE;
    if (!arena || offset < 0 || offset % PAGE || (uintptr_t)(offset + count * PAGE) > arena->end - arena->begin)
        return 0;
    if (memchr(arena->is_taken + page, 1, (size_t)count)) return 0;
    memset(arena->is_taken + page, 1, (size_t)count);
    arena->counts[page] = count;
    return 1;
}

/* The arena of a block that is free from now on, and the block's pages; NULL if it is in none. */
static arena_t *release_pages(uintptr_t address, int64_t *count) {
    for (int index = arena_count - 1; index >= 0; index--) {
        arena_t *arena = &arenas[index];
        if (address < arena->begin || address >= arena->end) continue;
        int64_t page = (int64_t)(address - arena->begin) / PAGE;
        *count = arena->counts[page];
        memset(arena->is_taken + page, 0, (size_t)*count);
        arena->counts[page] = 0;
        return arena;
    }
    return NULL;
}

/* The planned place for an allocation; NULL where there is none. */
static void *planned(plan_t *plan, size_t nbytes) {
    for (int64_t ahead = 0; ahead < LOOKAHEAD && plan->next + ahead < plan->count; ahead++) {
        int64_t index = plan->next + ahead, offset = plan->offsets[index];
        if (plan->nbytes[index] != (int64_t)nbytes) continue;
        plan->next = index + 1;
        if (offset >= 0 && take_pages(plan->arena, offset, (int64_t)nbytes)) {
            plan->followed++;
            return (void *)(plan->arena->begin + (uintptr_t)offset);
        }
        plan->taken += offset >= 0;
        return NULL;
    }
    plan->departed++;
    return NULL;
}

int posix_memalign(void **found, size_t alignment, size_t nbytes) {
    if (!real_memalign) resolve();
    if (nbytes < least_nbytes || !is_followed || alignment > PAGE) return real_memalign(found, alignment, nbytes);
    if (is_following) {
        pthread_mutex_lock(&lock);
        void *place = planned(&host_plan, nbytes);
        pthread_mutex_unlock(&lock);
        if (place) {
            *found = place;
            return 0;
        }
    }
    int error = real_memalign(found, alignment, nbytes);
    if (!error && is_recording) {
        pthread_mutex_lock(&lock);
        if (is_recording && live_used < live_capacity / 2) {
            int64_t slot = slot_of((uintptr_t)*found, 1);
            live_keys[slot] = (uintptr_t)*found;
            live_values[slot] = allocation_count++;
            live_used++;
            note(ALLOCATED, (int64_t)nbytes);
        }
        pthread_mutex_unlock(&lock);
    }
    return error;
}

void free(void *memory) {
    uintptr_t address = (uintptr_t)memory;
    if (address >= lowest && address < highest) {
        int64_t count;
        pthread_mutex_lock(&lock);
        arena_t *arena = release_pages(address, &count);
        int is_retired = arena && (arena != host_plan.arena || !is_following);
        pthread_mutex_unlock(&lock);
        if (is_retired) madvise(memory, (size_t)(count * PAGE), MADV_DONTNEED); /* nobody takes these pages again */
        if (arena) return;
    }
    if (is_recording && memory) {
        pthread_mutex_lock(&lock);
        int64_t slot = is_recording ? slot_of(address, 0) : -1;
        if (slot >= 0) {
            live_keys[slot] = 1;
            live_used--;
            note(RELEASED, live_values[slot]);
        }
        pthread_mutex_unlock(&lock);
    }
    if (!real_free && !is_resolving) resolve();
    if (real_free)
        real_free(memory);
    else
        __libc_free(memory);
}

/* Record this thread's allocations from `least` bytes on into `into`. */
void penstock_pool_record(entry_t *into, int64_t capacity, int64_t least, uintptr_t *keys, int64_t *values, int64_t slots) {
    pthread_mutex_lock(&lock);
    entries = into, entry_capacity = capacity, entry_count = allocation_count = live_used = 0;
    live_keys = keys, live_values = values, live_capacity = slots;
    least_nbytes = (size_t)least;
    is_followed = is_recording = 1;
    pthread_mutex_unlock(&lock);
}

/* End the recording; how many entries there were, which may be more than there was room for. */
int64_t penstock_pool_recorded(void) {
    pthread_mutex_lock(&lock);
    is_recording = 0;
    if (!is_following) least_nbytes = SIZE_MAX;
    pthread_mutex_unlock(&lock);
    return entry_count;
}

void penstock_pool_mark(int64_t mark) {
    pthread_mutex_lock(&lock);
    if (is_recording) note(MARKED, mark);
    pthread_mutex_unlock(&lock);
}

/* Which recorded allocation lies at this address; -1 if none does. */
int64_t penstock_pool_ordinal(uintptr_t address) {
    pthread_mutex_lock(&lock);
    int64_t slot = is_recording ? slot_of(address, 0) : -1, found = slot < 0 ? -1 : live_values[slot];
    pthread_mutex_unlock(&lock);
    return found;
}

/* 0: there were too many plans. */
static int begin_plan(plan_t *plan, arena_t arena, const int64_t *sizes, const int64_t *offsets, int64_t count) {
    if (arena_count == ARENAS) return 0;
    arenas[arena_count] = arena;
    *plan = (plan_t){&arenas[arena_count++], sizes, offsets, count, 0, 0, 0, 0};
    return 1;
}

/* Follow a plan with this thread: an arena, a byte and a number for each of its pages, and sizes and offsets in order.
   All of it has to outlive the process. 0: there were too many plans. */
int penstock_pool_follow(uintptr_t begin, int64_t nbytes, int64_t least, unsigned char *is_taken, int64_t *counts,
                         const int64_t *sizes, const int64_t *offsets, int64_t count) {
    arena_t arena = {begin, begin + (uintptr_t)nbytes, is_taken, counts};
    pthread_mutex_lock(&lock);
    int is_room = begin_plan(&host_plan, arena, sizes, offsets, count);
    if (is_room) {
        lowest = arena.begin < lowest ? arena.begin : lowest;
        highest = arena.end > highest ? arena.end : highest;
        least_nbytes = (size_t)least;
        is_followed = is_following = 1;
    }
    pthread_mutex_unlock(&lock);
    return is_room;
}

/* The next allocation is this one of the plan. */
void penstock_pool_seek(int64_t next) { host_plan.next = next; }

/* Take a place that no allocation of the plan has; 0 where some of it is taken. `free` gives it back. */
int penstock_pool_take(int64_t offset, int64_t nbytes) {
    pthread_mutex_lock(&lock);
    int is_ours = take_pages(host_plan.arena, offset, nbytes);
    pthread_mutex_unlock(&lock);
    return is_ours;
}

/* Record nothing and allocate no more in the arena; what lies there stays valid. */
void penstock_pool_leave(void) {
    pthread_mutex_lock(&lock);
    is_recording = is_followed = is_following = 0;
    least_nbytes = SIZE_MAX;
    pthread_mutex_unlock(&lock);
}

void penstock_pool_counts(int64_t *followed, int64_t *departed, int64_t *taken) {
    *followed = host_plan.followed, *departed = host_plan.departed, *taken = host_plan.taken;
}

/* -- a CUDA device, whose memory is never touched here -- */

static int (*cuda_malloc)(void **, size_t);
static int (*cuda_free)(void *);
static pthread_once_t cuda_once = PTHREAD_ONCE_INIT;
static void *cuda_stream; /* a place is free again in the order of one stream: of the plan's first allocation */
static int is_stream_known;

/* The runtime that is loaded, whichever it is, before one that is not. */
static void find_cuda(void) {
    static const char *const names[] = {"libcudart.so", "libcudart.so.12", "libcudart.so.13"};
    void *runtime = RTLD_DEFAULT, *found = dlsym(runtime, "cudaMalloc");
    for (int tried = 0; !found && tried < 6; tried++) {
        runtime = dlopen(names[tried % 3], RTLD_LAZY | (tried < 3 ? RTLD_NOLOAD : 0));
        if (runtime) found = dlsym(runtime, "cudaMalloc");
    }
    if (!found) return;
    cuda_free = (int (*)(void *))dlsym(runtime, "cudaFree");
    if (cuda_free) cuda_malloc = (int (*)(void **, size_t))found;
}

/* The planned place, or memory of the runtime; NULL where there is no runtime, or it has none. Any thread's: backward
   passes have their own. The runtime is called without the lock, since it may call `free`. */
void *penstock_cuda_alloc(ssize_t nbytes, int device, void *stream) {
    void *found = NULL;
    pthread_once(&cuda_once, find_cuda);
    if (!cuda_malloc || nbytes <= 0) return NULL;
    pthread_mutex_lock(&lock);
    if (cuda_plan.count && !device) {
        if (!is_stream_known) cuda_stream = stream, is_stream_known = 1;
        if (stream == cuda_stream) found = planned(&cuda_plan, (size_t)nbytes);
    }
    pthread_mutex_unlock(&lock);
    if (found || !cuda_malloc(&found, (size_t)nbytes)) return found;
    return NULL;
}

void penstock_cuda_free(void *memory, ssize_t nbytes, int device, void *stream) {
    (void)nbytes, (void)device, (void)stream;
    if (!memory) return;
    pthread_mutex_lock(&lock);
    int64_t count;
    int is_ours = release_pages((uintptr_t)memory, &count) != NULL;
    pthread_mutex_unlock(&lock);
    pthread_once(&cuda_once, find_cuda);
    if (!is_ours && cuda_free) cuda_free(memory);
}

/* Follow a plan on device 0 with all threads. The arena has to outlive the process, sizes and offsets the plan. 0: there
   were too many plans, or there is no memory to note pages in. */
int penstock_cuda_follow(uintptr_t begin, int64_t nbytes, const int64_t *sizes, const int64_t *offsets, int64_t count) {
    size_t pages = (size_t)nbytes / PAGE + 1;
    arena_t arena = {begin, begin + (uintptr_t)nbytes, calloc(pages, 1), calloc(pages, sizeof(int64_t))};
    int is_room = 0;
    if (arena.is_taken && arena.counts) {
        pthread_mutex_lock(&lock);
        is_room = begin_plan(&cuda_plan, arena, sizes, offsets, count);
        is_stream_known = 0;
        pthread_mutex_unlock(&lock);
    }
    if (!is_room) free(arena.is_taken), free(arena.counts);
    return is_room;
}

/* The next allocation is this one of the plan: 0 when an iteration begins. */
void penstock_cuda_seek(int64_t next) {
    pthread_mutex_lock(&lock);
    cuda_plan.next = next;
    pthread_mutex_unlock(&lock);
}

/* Allocate no more in the arena; what lies there stays valid. */
void penstock_cuda_leave(void) {
    pthread_mutex_lock(&lock);
    cuda_plan.count = 0;
    pthread_mutex_unlock(&lock);
}

void penstock_cuda_counts(int64_t *followed, int64_t *departed, int64_t *taken) {
    *followed = cuda_plan.followed, *departed = cuda_plan.departed, *taken = cuda_plan.taken;
}
