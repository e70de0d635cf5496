//! Files that rotation compresses, and files that are compressed when they are found.

use flate2::Compression;
use flate2::write::GzEncoder;

use super::copies::{copy, truncate};
use super::*;
use crate::source::identity::HEAD_BYTES;

/// Compresses a file as gzip does: the new one has its times, then the old one is deleted.
pub(super) fn gzip(place: &Place, name: &str) {
    gzip_and_keep(place, name);
    fs::remove_file(place.path(name)).unwrap();
}

fn gzip_and_keep(place: &Place, name: &str) {
    let stat = Stat::at(&place.path(name)).unwrap();
    let to = place.path(&format!("{name}.gz"));
    let mut packed = GzEncoder::new(File::create(&to).unwrap(), Compression::fast());
    packed.write_all(&fs::read(place.path(name)).unwrap()).unwrap();
    let file = packed.finish().unwrap();
    file.set_modified(UNIX_EPOCH + Duration::from_nanos(stat.modified as u64)).unwrap();
}

fn wait_and_read(place: &mut Place) -> Vec<String> {
    place.lines_within(seconds(15))
}

const PATTERNS: [&str; 2] = ["a.log", "a.log*"];

#[test]
fn a_file_compressed_while_the_agent_is_down_is_finished_first_from_there() {
    for pattern in PATTERNS {
        for (read, want) in [(0, 100), (50, 100), (100, 10_000), (5000, 1 << 20)] {
            let mut place = Place::new(pattern);
            place.want = want;
            place.append("a.log", text(&numbered(0, read)));
            assert_eq!(place.lines(), numbered(0, read));
            place.append("a.log", text(&numbered(read, read + 10_000)));
            // Some of it is under way.
            place.source.hint([], true, place.now);
            place.now += seconds(1);
            place.source.tick(place.now);
            place.read_chunk(5);
            place.append("a.log", text(&numbered(read + 10_000, read + 20_000)));
            place.rename("a.log", "a.log.1");
            gzip(&place, "a.log.1");
            place.append("a.log", text(&numbered(read + 20_000, read + 20_010)));
            place.read.clear();
            place.restart();
            let lines = wait_and_read(&mut place);
            assert_eq!(lines.len(), 20_010, "{pattern} {read}");
            assert!(lines == numbered(read, read + 20_010), "{pattern} {read}");
            assert_eq!(place.lost(), []);
            place.restart();
            assert_eq!(wait_and_read(&mut place), [""; 0]);
        }
    }
}

#[test]
fn a_restart_in_the_middle_of_a_compressed_file_goes_on_there() {
    for pattern in PATTERNS {
        let mut place = Place::new(pattern);
        place.append("a.log", text(&numbered(0, 10)));
        assert_eq!(place.lines(), numbered(0, 10));
        place.append("a.log", text(&numbered(10, 1000)));
        place.rename("a.log", "a.log.1");
        gzip(&place, "a.log.1");
        place.want = 100;
        for _ in 0..3 {
            place.restart();
            place.source.tick(place.now);
            place.now += READ_SOON;
            assert!(place.read_chunk(3));
            place.finish_all();
        }
        assert_eq!(std::mem::take(&mut place.read).len(), 9);
        place.restart();
        place.want = 64 * 1024;
        assert_eq!(wait_and_read(&mut place), numbered(19, 1000), "{pattern}");
        // It moves on, too.
        place.rename("a.log.1.gz", "a.log.2.gz");
        assert_eq!(wait_and_read(&mut place), [""; 0]);
        place.restart();
        assert_eq!(wait_and_read(&mut place), [""; 0]);
        fs::remove_file(place.path("a.log.2.gz")).unwrap();
        assert_eq!(wait_and_read(&mut place), [""; 0]);
        assert_eq!(place.lost(), []);
    }
}

#[test]
fn a_file_that_was_read_is_not_read_again_when_it_is_compressed() {
    for idle in [0, 1, 10, 100] {
        for (restart, keep) in [(false, false), (true, false), (false, true)] {
            let mut place = Place::new("a.log*");
            place.append("a.log", text(&numbered(0, 100)));
            assert_eq!(place.lines(), numbered(0, 100));
            place.rename("a.log", "a.log.1");
            place.append("a.log", text(&numbered(100, 110)));
            assert_eq!(place.lines(), numbered(100, 110));
            place.wait(seconds(idle));
            if keep {
                gzip_and_keep(&place, "a.log.1");
            } else {
                gzip(&place, "a.log.1");
            }
            if restart {
                place.restart();
            }
            let lines = wait_and_read(&mut place);
            assert_eq!(lines, [""; 0], "idle {idle} restart {restart} keep {keep}");
            place.rename("a.log.1.gz", "a.log.2.gz");
            assert_eq!(wait_and_read(&mut place), [""; 0]);
            place.restart();
            assert_eq!(wait_and_read(&mut place), [""; 0], "idle {idle} restart {restart}");
            assert_eq!(place.lost(), []);
            assert_eq!(place.source.standing().lag_bytes, 0);
        }
    }
}

#[test]
fn compressed_files_that_the_pattern_covers_are_read_once_and_the_oldest_first() {
    let mut place = Place::new("a.log*");
    for (n, name) in ["a.log.3", "a.log.2", "a.log.1", "a.log"].into_iter().enumerate() {
        let file = place.append(name, text(&numbered(n * 100, n * 100 + 100)));
        file.set_modified(UNIX_EPOCH + seconds(1000 + n as u64)).unwrap();
        if n < 2 {
            gzip(&place, name);
        }
    }
    place.want = 1000;
    assert_eq!(wait_and_read(&mut place), numbered(0, 400));
    place.restart();
    assert_eq!(wait_and_read(&mut place), [""; 0]);
    place.append("other", "a late one\n");
    gzip(&place, "other");
    place.rename("other.gz", "a.log.other.gz");
    assert_eq!(wait_and_read(&mut place), ["a late one"]);
    place.append("a.log.not.gz", "not compressed\n");
    assert_eq!(wait_and_read(&mut place), ["not compressed"]);
}

#[test]
fn an_entry_that_begins_at_the_end_does_not_read_compressed_files_that_are_there() {
    let mut place = Place::with("a.log*", |entry| entry.start_at = StartAt::End);
    place.append("a.log.1", "old\n");
    gzip(&place, "a.log.1");
    assert_eq!(wait_and_read(&mut place), [""; 0]);
    place.append("a.log.2", "new\n");
    gzip(&place, "a.log.2");
    assert_eq!(wait_and_read(&mut place), ["new"]);
    place.restart();
    assert_eq!(wait_and_read(&mut place), [""; 0]);
}

#[test]
fn a_last_line_without_newline_of_a_compressed_file_is_sent() {
    let mut place = Place::new("a.log*");
    place.append("a.log.1", "whole\nunended");
    gzip(&place, "a.log.1");
    assert_eq!(wait_and_read(&mut place), ["whole", "unended"]);
    place.restart();
    assert_eq!(wait_and_read(&mut place), [""; 0]);
}

#[test]
fn what_is_cut_or_damaged_is_read_as_far_as_it_goes_and_the_rest_is_counted() {
    for damage in ["cut", "bytes"] {
        let mut place = Place::new("a.log");
        place.append("a.log", text(&numbered(0, 10)));
        assert_eq!(place.lines(), numbered(0, 10));
        place.append("a.log", text(&numbered(10, 20_000)));
        place.read_all();
        place.read.clear();
        place.rename("a.log", "a.log.1");
        gzip(&place, "a.log.1");
        let packed = OpenOptions::new().write(true).open(place.path("a.log.1.gz")).unwrap();
        let len = packed.metadata().unwrap().len();
        if damage == "cut" {
            packed.set_len(len / 2).unwrap();
        } else {
            packed.write_all_at(&[0x55; 64], len / 2).unwrap();
        }
        place.append("a.log", "next\n");
        place.restart();
        let mut lines = place.lines_within(seconds(30));
        assert_eq!(lines.pop().unwrap(), "next", "{damage}");
        assert!(lines.len() > 100 && lines.len() < 19_000, "{damage}: {}", lines.len());
        assert!(numbered(10, 20_000).starts_with(&lines) || damage == "bytes");
        let lost = place.lost();
        assert_eq!((lost.len(), lost[0].0), (1, "damaged"), "{damage} {lost:?}");
        // What is decompressed behind wrong bytes may be anything.
        assert!(lost[0].1 > if damage == "cut" { 1000 } else { 0 }, "{damage} {lost:?}");
    }
}

#[test]
fn another_file_with_the_same_header_is_not_taken_for_the_compressed_one() {
    for pattern in PATTERNS {
        let mut place = Place::new(pattern);
        let header = format!("{0}\n{0}\n", "# the same header in each file ".repeat(20));
        let with_header = |from, to| format!("{header}{}", text(&numbered(from, to)));
        place.append("a.log", with_header(0, 100));
        assert_eq!(place.lines().len(), 102);
        place.append("a.log", text(&numbered(100, 200)));
        for (name, from) in [("a.log.3", 1000), ("a.log.1", 2000)] {
            place.append(name, with_header(from, from + 500));
            gzip(&place, name);
        }
        place.rename("a.log", "a.log.2");
        gzip(&place, "a.log.2");
        place.restart();
        let lines = wait_and_read(&mut place);
        assert!(lines.starts_with(&numbered(100, 200)), "{pattern}");
        let others = if pattern == "a.log" { 0 } else { 2 * 502 };
        assert_eq!(lines.len(), 100 + others, "{pattern}");
        assert_eq!(place.lost(), []);
    }
}

#[test]
fn a_file_held_for_too_long_is_given_back_where_it_was_compressed() {
    let mut place = Place::new("a.log");
    place.limits = HeldLimits { age: seconds(10), ..LIMITS };
    place.restart();
    place.append("a.log", text(&numbered(0, 10)));
    place.unfinished_lines();
    place.finish_all();
    place.append("a.log", text(&numbered(10, 1000)));
    place.rename("a.log", "a.log.1");
    gzip(&place, "a.log.1");
    place.source.hint([], true, place.now);
    place.wait(seconds(20));
    assert!(place.source.standing().held_bytes < 8 * 990);
    assert_eq!(wait_and_read(&mut place), numbered(10, 1000));
    assert_eq!(place.lost(), []);
}

#[test]
fn the_end_of_compressed_files_is_an_end_with_once() {
    let mut place = Place::new("a.log*");
    place.append("a.log.1", "one\n");
    gzip(&place, "a.log.1");
    place.append("a.log", "two\n");
    place.source.end();
    assert_eq!(wait_and_read(&mut place), ["one", "two"]);
    assert!(place.source.is_drained());
}

#[test]
fn a_compressed_file_that_only_begins_as_one_of_the_same_length_is_read() {
    let mut place = Place::new("a.log*");
    let header = "# the same header \n".repeat(HEAD_BYTES / 10);
    place.append("a.log", format!("{header}one\n"));
    assert_eq!(place.lines_within(seconds(1)).last().unwrap(), "one");
    place.append("b.log", format!("{header}two\n"));
    place.rename("b.log", "a.log.1");
    gzip(&place, "a.log.1");
    assert_eq!(wait_and_read(&mut place).last().unwrap(), "two");
    // And one that holds just the same is not.
    place.append("a.log.2", format!("{header}one\n"));
    gzip(&place, "a.log.2");
    assert_eq!(wait_and_read(&mut place), [""; 0]);
}

#[test]
fn a_compressed_copy_of_what_was_read_is_not_taken_for_another_file_after_a_restart() {
    let mut place = Place::new("a.log");
    place.append("a.log", "gone\n");
    place.source.hint([], true, place.now);
    place.wait(seconds(1));
    place.rename("a.log", "a.log.1");
    File::create(place.path("a.log.1")).unwrap();
    place.append("a.log", text(&numbered(0, 10)));
    assert_eq!(place.lines(), numbered(0, 10));
    assert_eq!(place.lost(), [("truncated", 5)]);
    // The empty one is deleted, and its name is that of the copy now.
    fs::remove_file(place.path("a.log.1")).unwrap();
    fs::copy(place.path("a.log"), place.path("a.log.1")).unwrap();
    File::create(place.path("a.log")).unwrap();
    gzip(&place, "a.log.1");
    assert_eq!(place.lines(), [""; 0]);
    place.restart();
    assert_eq!(wait_and_read(&mut place), [""; 0]);
}

#[test]
fn what_is_under_way_and_not_in_a_compressed_copy_is_counted_after_a_crash() {
    let mut place = Place::new("a.log");
    place.append("a.log", text(&numbered(0, 10)));
    assert_eq!(place.lines(), numbered(0, 10));
    place.append("a.log", text(&numbered(10, 20)));
    assert_eq!(place.unfinished_lines(), numbered(10, 20));
    fs::copy(place.path("a.log"), place.path("a.log.1")).unwrap();
    place.append("a.log", text(&numbered(20, 30)));
    assert_eq!(place.unfinished_lines(), numbered(20, 30));
    File::create(place.path("a.log")).unwrap();
    gzip(&place, "a.log.1");
    assert_eq!(place.unfinished_lines(), [""; 0]);
    place.restart();
    assert_eq!(wait_and_read(&mut place), numbered(10, 20));
    assert_eq!(place.lost(), [("truncated", text(&numbered(20, 30)).len() as u64)]);
}

#[test]
fn a_copy_that_was_seen_before_it_was_compressed_takes_nothing_from_what_it_was_made_of() {
    let mut place = Place::new("a.log*");
    place.append("a.log", text(&numbered(0, 10)));
    assert_eq!(place.unfinished_lines(), numbered(0, 10));
    copy(&place);
    truncate(&place);
    place.restart();
    place.source.tick(place.now);
    gzip(&place, "a.log.1");
    place.rename("a.log.1.gz", "a.log.2.gz");
    place.append("a.log", text(&numbered(10, 20)));
    copy(&place);
    truncate(&place);
    // It is noticed by a read, before names are looked at.
    place.now += READ_SOON;
    place.read_chunk(1);
    place.append("a.log", text(&numbered(20, 30)));
    // The second copy, of which nothing was read, is a file like any other.
    let lines = wait_and_read(&mut place);
    assert_eq!(lines.len(), 30);
    assert!(lines.starts_with(&[numbered(0, 10), numbered(20, 30)].concat()), "{lines:?}");
    assert_eq!(place.lost(), []);
}
