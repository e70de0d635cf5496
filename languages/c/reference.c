// The reference filter of the conformance kit: conformance/README.md says what it does.
#include "weir.h"

static weir_context context;
static weir_bytes prefix;
static uint64_t seen;

static weir_bytes start(weir_context ctx, weir_bytes config) {
  context = ctx;
  prefix = WEIR_TEXT("> ");
  if (config.len == 0) return (weir_bytes){NULL, 0};
  bool is_string = config.len >= 2 && config.at[0] == '"' && config.at[config.len - 1] == '"';
  for (uint32_t i = 0; i < config.len; i++) is_string &= config.at[i] != '\\';
  if (!is_string) return WEIR_TEXT("config: a string without escapes");
  prefix = (weir_bytes){config.at + 1, config.len - 2};
  return (weir_bytes){NULL, 0};
}

static void write_number(uint64_t number) {
  uint8_t digits[20], *at = digits + sizeof digits;
  do *--at = (uint8_t)('0' + number % 10);
  while ((number /= 10) != 0);
  weir_write((weir_bytes){at, (uint32_t)(digits + sizeof digits - at)});
}

static weir_verdict line(weir_bytes line, weir_place place) {
  uint64_t number = seen++;
  if (weir_equal(line, WEIR_TEXT("aside"))) return WEIR_SET_ASIDE;
  if (weir_equal(line, WEIR_TEXT("trap"))) __builtin_trap();
  if (weir_equal(line, WEIR_TEXT("context"))) {
    weir_write(context.entry), weir_write(WEIR_TEXT(" "));
    weir_write(context.topic), weir_write(WEIR_TEXT(" "));
    weir_write(context.host), weir_end_line();
    return WEIR_REPLACE;
  }
  if (weir_equal(line, WEIR_TEXT("seen"))) {
    write_number(number), weir_end_line();
    return WEIR_REPLACE;
  }
  if (weir_equal(line, WEIR_TEXT("where"))) {
    weir_write(place.path), weir_write(WEIR_TEXT("@"));
    write_number(place.offset), weir_write(WEIR_TEXT("@"));
    write_number(place.unix_ms), weir_end_line();
    return WEIR_REPLACE;
  }
  uint32_t blank = 0;
  while (blank < line.len && line.at[blank] != ' ') blank++;
  weir_bytes word = {line.at, blank}, rest = {line.at + blank, 0};
  if (blank < line.len) rest = (weir_bytes){line.at + blank + 1, line.len - blank - 1};

  if (weir_equal(word, WEIR_TEXT("DEBUG"))) return WEIR_DROP;
  if (weir_equal(word, WEIR_TEXT("one"))) {
    weir_write(prefix), weir_write(rest), weir_end_line();
    return WEIR_REPLACE;
  }
  if (weir_equal(word, WEIR_TEXT("split"))) {
    uint32_t from = 0;
    for (uint32_t i = 0; i <= rest.len; i++) {
      if (i < rest.len && rest.at[i] != ';') continue;
      weir_write((weir_bytes){rest.at + from, i - from}), weir_end_line();
      from = i + 1;
    }
    return WEIR_REPLACE;
  }
  if (weir_equal(word, WEIR_TEXT("many"))) {
    uint32_t lines = 0;
    for (uint32_t i = 0; i < rest.len; i++) lines = lines * 10 + rest.at[i] - '0';
    while (lines-- > 0) weir_write(WEIR_TEXT("x")), weir_end_line();
    return WEIR_REPLACE;
  }
  if (weir_equal(word, WEIR_TEXT("log"))) weir_log(WEIR_INFO, rest);
  if (weir_equal(word, WEIR_TEXT("count"))) weir_count(rest, 1);
  return WEIR_KEEP;
}

WEIR_FILTER(start, line)
