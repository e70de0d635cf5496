/* What the agent's process is told instead of the truth: see preload.rs, which builds and steers it.
 *
 * The wall clock is shifted. Files *.redb are on a disk that can fail; what is written to one and not
 * synced yet is undone by what stands in UNDO/NAME: records of place, length and size before, each with
 * the bytes before. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

struct control {
    int64_t clock_s;
    int64_t fails; /* 1: writes and syncs, 2: reads as well */
};

static volatile struct control *control;
static const char *undo;
static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

__attribute__((constructor)) static void begin(void) {
    static struct control none;
    const char *path = getenv("WEIR_PRELOAD_CONTROL");
    undo = getenv("WEIR_PRELOAD_UNDO");
    control = &none;
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *map = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED) control = map;
}

int clock_gettime(clockid_t clock, struct timespec *out) {
    static __typeof__(&clock_gettime) next;
    if (!next) next = REAL(clock_gettime);
    int code = next(clock, out);
    if (code == 0 && control && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        out->tv_sec += control->clock_s;
    return code;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    int code = REAL(gettimeofday)(out, zone);
    if (code == 0 && control) out->tv_sec += control->clock_s;
    return code;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}

int timespec_get(struct timespec *out, int base) {
    int code = REAL(timespec_get)(out, base);
    if (code == TIME_UTC && control) out->tv_sec += control->clock_s;
    return code;
}

/* The kernel waits by the true clock. What waits already when the clock is set waits on unchanged. */
static struct timespec truly(const struct timespec *until) {
    struct timespec out = *until;
    out.tv_sec -= control->clock_s;
    return out;
}

int cnd_timedwait(cnd_t *restrict cond, mtx_t *restrict mutex, const struct timespec *restrict until) {
    struct timespec at = truly(until);
    return REAL(cnd_timedwait)(cond, mutex, &at);
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    static __typeof__(&pthread_cond_timedwait) next;
    if (!next) next = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!next) next = REAL(pthread_cond_timedwait);
    struct timespec at = truly(until);
    return next(cond, mutex, &at);
}

/* The name of a database, or NULL for any other file. */
static const char *database(int fd, char path[PATH_MAX]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 5 || memcmp(path + length - 5, ".redb", 5)) return NULL;
    path[length] = 0;
    return strrchr(path, '/') + 1;
}

static int fails(int64_t from) {
    if (control->fails < from) return 0;
    errno = EIO;
    return 1;
}

static int undo_file(const char *name, int flags) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", undo, name);
    return open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0600);
}

static void note(int fd, const char *name, off_t at, size_t length) {
    struct stat stat;
    if (!undo || fstat(fd, &stat)) return;
    uint64_t head[3] = {(uint64_t)at, 0, (uint64_t)stat.st_size};
    char *record = malloc(sizeof head + length);
    if (!record) abort();
    ssize_t before = length ? REAL(pread64)(fd, record + sizeof head, length, at) : 0;
    head[1] = before > 0 ? (uint64_t)before : 0;
    memcpy(record, head, sizeof head);
    int out = undo_file(name, O_APPEND);
    size_t whole = sizeof head + head[1];
    if (out < 0 || write(out, record, whole) != (ssize_t)whole) abort();
    close(out);
    free(record);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) {
    char path[PATH_MAX];
    const char *name = database(fd, path);
    if (!name) return REAL(pwrite64)(fd, bytes, length, at);
    if (fails(1)) return -1;
    pthread_mutex_lock(&one);
    note(fd, name, at, length);
    ssize_t written = REAL(pwrite64)(fd, bytes, length, at);
    pthread_mutex_unlock(&one);
    return written;
}

int ftruncate64(int fd, off64_t length) {
    char path[PATH_MAX];
    const char *name = database(fd, path);
    if (!name) return REAL(ftruncate64)(fd, length);
    if (fails(1)) return -1;
    struct stat stat;
    pthread_mutex_lock(&one);
    if (!fstat(fd, &stat)) note(fd, name, length, stat.st_size > length ? stat.st_size - length : 0);
    int code = REAL(ftruncate64)(fd, length);
    pthread_mutex_unlock(&one);
    return code;
}

ssize_t pread64(int fd, void *bytes, size_t length, off64_t at) {
    char path[PATH_MAX];
    if (control && control->fails >= 2 && database(fd, path) && fails(2)) return -1;
    return REAL(pread64)(fd, bytes, length, at);
}

static int synced(int fd, int (*sync)(int)) {
    char path[PATH_MAX];
    const char *name = database(fd, path);
    if (!name) return sync(fd);
    if (fails(1)) return -1;
    pthread_mutex_lock(&one);
    int code = sync(fd);
    int out = code == 0 && undo ? undo_file(name, O_TRUNC) : -1;
    if (out >= 0) close(out);
    pthread_mutex_unlock(&one);
    return code;
}

int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }
int fsync(int fd) { return synced(fd, REAL(fsync)); }
