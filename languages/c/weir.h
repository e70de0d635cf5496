// A filter of weir in C, without a libc: include this file in one source file, write two functions,
// and name them in WEIR_FILTER. README.md says how it is built.
//
// It is the canonical ABI of guest-sdk/wit/filter.wit, by hand: the host puts what it hands over into
// memory from cabi_realloc, and reads the result from where the pointer that comes back says.
#ifndef WEIR_H
#define WEIR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Bytes that belong to somebody else; text is UTF-8.
typedef struct {
  const uint8_t *at;
  uint32_t len;
} weir_bytes;

// What an instance works for. It stays as long as the instance.
typedef struct {
  weir_bytes entry, topic, host;
} weir_context;

// Where the line stands; for every line of a batch the same but for the offset.
typedef struct {
  weir_bytes path;
  uint64_t offset;
  uint64_t unix_ms;
} weir_place;

// What becomes of a line.
typedef enum {
  WEIR_DROP = 0,
  WEIR_KEEP = 1,
  // By what was written with weir_write and ended with weir_end_line, 1 to 253 lines.
  WEIR_REPLACE = 2,
  // As on_error of the entry says.
  WEIR_SET_ASIDE = 255,
} weir_verdict;

typedef enum { WEIR_ERROR = 1, WEIR_WARNING = 2, WEIR_INFO = 3, WEIR_DEBUG = 4 } weir_level;

// A text of the program.
#define WEIR_TEXT(literal) ((weir_bytes){(const uint8_t *)(literal), sizeof(literal) - 1})

// The rest is the machinery.

__attribute__((import_module("weir:filter/host@0.1.0"), import_name("log"))) void weir_host_log(
    uint32_t level, const uint8_t *at, uint32_t len);
__attribute__((import_module("weir:filter/host@0.1.0"), import_name("count"))) void weir_host_count(
    const uint8_t *at, uint32_t len, uint64_t by);

// Writes to the agent's log.
static inline void weir_log(weir_level level, weir_bytes message) { weir_host_log(level, message.at, message.len); }
// Adds to a counter of the entry: a-z, 0-9 and _.
static inline void weir_count(weir_bytes name, uint64_t by) { weir_host_count(name.at, name.len, by); }

static inline bool weir_equal(weir_bytes one, weir_bytes other) {
  if (one.len != other.len) return false;
  for (uint32_t i = 0; i < one.len; i++)
    if (one.at[i] != other.at[i]) return false;
  return true;
}

extern uint8_t __heap_base;
static uintptr_t weir_free, weir_kept;

// Memory until the batch is done; what is taken in init stays. There is no free.
static void *weir_take(size_t size, size_t align) {
  if (weir_free == 0) weir_free = (uintptr_t)&__heap_base;
  uintptr_t at = (weir_free + align - 1) & ~(uintptr_t)(align - 1);
  weir_free = at + size;
  uintptr_t end = (uintptr_t)__builtin_wasm_memory_size(0) << 16;
  if (weir_free > end && __builtin_wasm_memory_grow(0, (weir_free - end + 0xffff) >> 16) == (size_t)-1) __builtin_trap();
  return (void *)at;
}

__attribute__((export_name("cabi_realloc"))) void *weir_realloc(void *old, size_t old_size, size_t align, size_t size) {
  void *at = weir_take(size, align);
  if (old_size != 0) __builtin_memcpy(at, old, old_size < size ? old_size : size);
  return at;
}

// Bytes that grow. One at a time: what grows is the last that was taken, or it moves.
static struct {
  uint8_t *at;
  uint32_t len, room;
} weir_output;
static uint32_t *weir_ends, weir_lines;

static void weir_write(weir_bytes bytes) {
  if (bytes.len > weir_output.room - weir_output.len) {
    uint32_t room = (weir_output.len + bytes.len) * 2;
    uint8_t *at = weir_take(room, 1);
    if (weir_output.len != 0) __builtin_memcpy(at, weir_output.at, weir_output.len);
    weir_output.at = at;
    weir_output.room = room;
  }
  if (bytes.len != 0) __builtin_memcpy(weir_output.at + weir_output.len, bytes.at, bytes.len);
  weir_output.len += bytes.len;
}

static uint32_t weir_ends_room;

// Ends a line of the replacement.
static void weir_end_line(void) {
  if (weir_lines == weir_ends_room) {
    weir_ends_room = weir_ends_room == 0 ? 1024 : weir_ends_room * 2;
    uint32_t *ends = weir_take(weir_ends_room * sizeof *ends, 4);
    if (weir_lines != 0) __builtin_memcpy(ends, weir_ends, weir_lines * sizeof *ends);
    weir_ends = ends;
  }
  weir_ends[weir_lines++] = weir_output.len;
}

// result<_, string>
typedef struct {
  uint8_t is_error;
  weir_bytes error;
} weir_started;

// result<output, string>, of which only the first half is used: a filter that fails traps.
typedef struct {
  uint8_t is_error;
  const uint8_t *verdicts;
  uint32_t verdicts_len;
  const uint8_t *bytes;
  uint32_t bytes_len;
  const uint32_t *ends;
  uint32_t ends_len;
} weir_processed;

// `start(weir_context, weir_bytes config)` returns an error, or {NULL} if all is well;
// `line(weir_bytes line, weir_place)` returns a weir_verdict.
#define WEIR_FILTER(start, line)                                                                                  \
  __attribute__((export_name("init"))) weir_started *weir_export_init(                                            \
      const uint8_t *entry, uint32_t entry_len, const uint8_t *topic, uint32_t topic_len, const uint8_t *host,     \
      uint32_t host_len, const uint8_t *config, uint32_t config_len) {                                            \
    static weir_started started;                                                                                  \
    weir_context context = {{entry, entry_len}, {topic, topic_len}, {host, host_len}};                            \
    started.error = start(context, (weir_bytes){config, config_len});                                             \
    started.is_error = started.error.at != NULL;                                                                  \
    weir_kept = weir_free;                                                                                        \
    return &started;                                                                                              \
  }                                                                                                               \
  __attribute__((export_name("process"))) weir_processed *weir_export_process(                                    \
      const uint8_t *path, uint32_t path_len, uint64_t offset, uint64_t unix_ms, const uint8_t *bytes,            \
      uint32_t bytes_len, const uint32_t *starts, uint32_t starts_len, const uint32_t *ends, uint32_t ends_len) { \
    static weir_processed processed;                                                                              \
    (void)bytes_len, (void)ends_len;                                                                              \
    weir_output.at = NULL, weir_output.len = weir_output.room = 0;                                                \
    weir_lines = weir_ends_room = 0;                                                                              \
    uint8_t *verdicts = weir_take(starts_len, 1);                                                                 \
    for (uint32_t i = 0; i < starts_len; i++) {                                                                   \
      uint32_t before = weir_lines;                                                                               \
      weir_place place = {{path, path_len}, offset + starts[i], unix_ms};                                         \
      weir_verdict verdict = line((weir_bytes){bytes + starts[i], ends[i] - starts[i]}, place);                    \
      verdicts[i] = verdict == WEIR_REPLACE ? (uint8_t)(weir_lines - before + 1) : (uint8_t)verdict;               \
    }                                                                                                             \
    processed = (weir_processed){0, verdicts, starts_len, weir_output.at, weir_output.len, weir_ends, weir_lines}; \
    return &processed;                                                                                            \
  }                                                                                                               \
  __attribute__((export_name("cabi_post_process"))) void weir_post_process(weir_processed *processed) {           \
    (void)processed;                                                                                              \
    weir_free = weir_kept;                                                                                        \
  }

#endif
