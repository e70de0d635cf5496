;; The filter that keeps every line, and does nothing else: what others are measured by. It is written
;; instruction by instruction, so that it is the same whatever compiles other filters.
(module
  (memory (export "memory") 1)
  ;; Memory is handed out one piece behind the other, from here on, and is free again after each batch.
  (global $free (mut i32) (i32.const 1024))

  ;; The next free bytes. Nothing is ever asked to grow.
  (func $take (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32)
    (result i32)
    (local $at i32) (local $missing i32)
    (local.set $at
      (i32.and
        (i32.sub (i32.add (global.get $free) (local.get $align)) (i32.const 1))
        (i32.sub (i32.const 0) (local.get $align))))
    (global.set $free (i32.add (local.get $at) (local.get $size)))
    (local.set $missing
      (i32.sub (i32.shr_u (i32.add (global.get $free) (i32.const 0xffff)) (i32.const 16)) (memory.size)))
    (if (i32.gt_s (local.get $missing) (i32.const 0))
      (then (if (i32.eq (memory.grow (local.get $missing)) (i32.const -1)) (then unreachable))))
    (local.get $at))

  ;; A result<_, string> that is no error: the memory at 16 begins with zeros.
  (func (export "init") (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)
    (i32.const 16))

  ;; A result<output, string> at 16: one verdict, 1, for each line; no bytes, no ends.
  (func (export "process")
    (param i32 i32) (param i64) (param i64) (param i32 i32) (param $starts i32) (param $lines i32) (param i32 i32)
    (result i32)
    (local $verdicts i32)
    (local.set $verdicts (call $take (i32.const 0) (i32.const 0) (i32.const 1) (local.get $lines)))
    (memory.fill (local.get $verdicts) (i32.const 1) (local.get $lines))
    (i32.store offset=20 (i32.const 0) (local.get $verdicts))
    (i32.store offset=24 (i32.const 0) (local.get $lines))
    (i32.const 16))

  (func (export "cabi_post_process") (param i32)
    (global.set $free (i32.const 1024))))
