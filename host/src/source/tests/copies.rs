//! Rotation by copying and truncating.

use super::*;

/// What an entry names, and whether that covers the copy.
const PATTERNS: [&str; 2] = ["a.log", "a.log*"];

pub(super) fn copy(place: &Place) {
    fs::copy(place.path("a.log"), place.path("a.log.1")).unwrap();
}

pub(super) fn truncate(place: &Place) {
    File::options().write(true).open(place.path("a.log")).unwrap().set_len(0).unwrap();
}

/// Ten lines were read, and ten more were not when it was copied and truncated.
fn half_read(pattern: &str) -> Place {
    let mut place = Place::new(pattern);
    place.append("a.log", text(&numbered(0, 10)));
    assert_eq!(place.lines(), numbered(0, 10));
    place.append("a.log", text(&numbered(10, 20)));
    copy(&place);
    truncate(&place);
    place
}

#[test]
fn what_was_read_is_not_read_again_from_the_copy() {
    for pattern in PATTERNS {
        let mut place = Place::new(pattern);
        place.append("a.log", text(&numbered(0, 10)));
        assert_eq!(place.lines(), numbered(0, 10));
        copy(&place);
        truncate(&place);
        place.append("a.log", text(&numbered(10, 12)));
        assert_eq!(place.lines_within(seconds(10)), numbered(10, 12), "{pattern}");
        assert_eq!(place.lost(), []);
    }
}

#[test]
fn a_copy_that_is_seen_before_the_truncation_waits_for_it() {
    let mut place = Place::new("a.log*");
    place.append("a.log", text(&numbered(0, 100)));
    assert_eq!(place.lines(), numbered(0, 100));
    let whole = fs::read(place.path("a.log")).unwrap();
    // It is half made when it is seen first.
    place.append("a.log.1", &whole[..700]);
    assert_eq!(place.lines(), [""; 0]);
    place.append("a.log.1", &whole[700..]);
    place.append("a.log", text(&numbered(100, 101)));
    assert_eq!(place.lines(), numbered(100, 101));
    truncate(&place);
    place.append("a.log", text(&numbered(101, 103)));
    assert_eq!(place.lines_within(seconds(10)), numbered(101, 103));
    place.rename("a.log.1", "a.log.2");
    place.restart();
    assert_eq!(place.lines_within(seconds(10)), [""; 0]);
}

#[test]
fn what_was_not_read_is_read_from_the_copy_before_the_new_content() {
    for pattern in PATTERNS {
        for restart in [false, true] {
            let mut place = half_read(pattern);
            place.append("a.log", text(&numbered(20, 30)));
            if restart {
                place.restart();
            }
            assert_eq!(place.lines_within(seconds(10)), numbered(10, 30), "{pattern}, restart {restart}");
            assert_eq!(place.lost(), []);
            assert!(place.read.iter().all(|read| read.origin == place.path("a.log")));
        }
    }
}

#[test]
fn what_was_under_way_at_the_truncation_is_read_from_the_copy_after_a_crash() {
    for pattern in PATTERNS {
        let mut place = Place::new(pattern);
        place.append("a.log", text(&numbered(0, 5)));
        assert_eq!(place.lines(), numbered(0, 5));
        place.append("a.log", text(&numbered(5, 10)));
        assert_eq!(place.unfinished_lines(), numbered(5, 10));
        copy(&place);
        truncate(&place);
        place.append("a.log", text(&numbered(10, 12)));
        assert_eq!(place.unfinished_lines(), numbered(10, 12));
        place.restart();
        assert_eq!(place.lines_within(seconds(10)), numbered(5, 12), "{pattern}");
    }
}

#[test]
fn what_did_not_make_it_into_the_copy_is_counted() {
    for pattern in PATTERNS {
        let mut place = Place::new(pattern);
        place.append("a.log", text(&numbered(0, 10)));
        assert_eq!(place.lines(), numbered(0, 10));
        place.append("a.log", "in the copy\n");
        copy(&place);
        place.append("a.log", "not in the copy\n");
        place.wait(seconds(1));
        truncate(&place);
        assert_eq!(place.lines_within(seconds(10)), ["in the copy"], "{pattern}");
        assert_eq!(place.lost(), [("truncated", 16)]);
    }
}

#[test]
fn a_copy_of_less_than_was_read_is_passed_over() {
    for pattern in PATTERNS {
        let mut place = Place::new(pattern);
        place.append("a.log", text(&numbered(0, 10)));
        assert_eq!(place.lines(), numbered(0, 10));
        copy(&place);
        place.append("a.log", text(&numbered(10, 20)));
        assert_eq!(place.lines(), numbered(10, 20));
        truncate(&place);
        place.append("a.log", text(&numbered(20, 30)));
        assert_eq!(place.lines_within(seconds(10)), numbered(20, 30), "{pattern}");
        place.restart();
        assert_eq!(place.lines_within(seconds(10)), [""; 0], "{pattern}");
        assert_eq!(place.lost(), []);
    }
}

#[test]
fn what_is_under_way_is_read_from_a_copy_of_less_than_was_read_after_a_crash() {
    for pattern in PATTERNS {
        let mut place = Place::new(pattern);
        place.append("a.log", text(&numbered(0, 10)));
        assert_eq!(place.lines(), numbered(0, 10));
        place.append("a.log", text(&numbered(10, 20)));
        assert_eq!(place.unfinished_lines(), numbered(10, 20));
        copy(&place);
        place.append("a.log", text(&numbered(20, 30)));
        assert_eq!(place.unfinished_lines(), numbered(20, 30));
        truncate(&place);
        place.append("a.log", text(&numbered(30, 40)));
        assert_eq!(place.unfinished_lines(), numbered(30, 40));
        place.restart();
        let lines = [numbered(10, 20), numbered(30, 40)].concat();
        assert_eq!(place.lines_within(seconds(10)), lines, "{pattern}");
        assert_eq!(place.lost(), [("truncated", text(&numbered(20, 30)).len() as u64)]);
    }
}

#[test]
fn a_copy_that_is_deleted_before_the_truncation_is_noticed_is_still_a_copy() {
    let mut place = Place::new("a.log*");
    place.append("a.log", text(&numbered(0, 10)));
    assert_eq!(place.lines(), numbered(0, 10));
    copy(&place);
    assert_eq!(place.lines(), [""; 0]);
    truncate(&place);
    fs::remove_file(place.path("a.log.1")).unwrap();
    place.append("a.log", text(&numbered(10, 20)));
    assert_eq!(place.lines_within(seconds(10)), numbered(10, 20));
}

#[test]
fn a_copy_waits_for_an_original_that_is_closed() {
    let mut place = Place::new("a.log*");
    place.append("a.log", text(&numbered(0, 10)));
    assert_eq!(place.lines(), numbered(0, 10));
    place.wait(seconds(100));
    assert_eq!(place.open_files(), 0);
    copy(&place);
    assert_eq!(place.lines(), [""; 0]);
    truncate(&place);
    place.rename("a.log", "a.log.2");
    assert_eq!(place.lines_within(seconds(10)), [""; 0]);
}

#[test]
fn a_copy_that_overwrites_the_last_one_is_a_copy() {
    for pattern in PATTERNS {
        let mut place = Place::new(pattern);
        for rotation in 0..4 {
            let (from, unread, to) = (rotation * 20, rotation * 20 + 12, rotation * 20 + 20);
            place.append("a.log", text(&numbered(from, unread)));
            assert_eq!(place.lines(), numbered(from, unread), "{pattern}");
            place.append("a.log", text(&numbered(unread, to)));
            copy(&place);
            if rotation % 2 == 1 {
                // It is looked at before the truncation.
                assert_eq!(place.lines_within(seconds(1)), numbered(unread, to), "{pattern}");
                truncate(&place);
                assert_eq!(place.lines_within(seconds(10)), [""; 0], "{pattern} {rotation}");
            } else {
                truncate(&place);
                assert_eq!(place.lines_within(seconds(10)), numbered(unread, to), "{pattern} {rotation}");
            }
        }
        assert_eq!(place.lost(), []);
    }
}

#[test]
fn a_file_that_was_copied_truncated_and_deleted_goes_on_in_its_copy() {
    for pattern in PATTERNS {
        for restart in [false, true] {
            let mut place = Place::new(pattern);
            place.append("a.log", text(&numbered(0, 10)));
            assert_eq!(place.lines(), numbered(0, 10));
            // Its descriptor is closed.
            place.wait(seconds(100));
            place.append("a.log", text(&numbered(10, 20)));
            copy(&place);
            truncate(&place);
            fs::remove_file(place.path("a.log")).unwrap();
            if restart {
                place.restart();
            }
            assert_eq!(place.lines_within(seconds(10)), numbered(10, 20), "{pattern}, restart {restart}");
            assert_eq!(place.lost(), []);
        }
    }
}

#[test]
fn a_short_file_with_the_same_header_is_not_taken_for_the_copy() {
    for pattern in PATTERNS {
        let mut place = Place::new(pattern);
        let header = "# the same header in each file\n";
        place.append("a.log", header);
        place.append("a.log", text(&numbered(0, 10)));
        assert_eq!(place.lines().len(), 11);
        place.append("a.log", text(&numbered(10, 20)));
        copy(&place);
        truncate(&place);
        fs::remove_file(place.path("a.log")).unwrap();
        place.append("a.log", &header[..20]);
        let lines = place.lines();
        place.append("a.log", &header[20..]);
        let lines: Vec<_> = lines.into_iter().chain(place.lines_within(seconds(10))).collect();
        let wanted: Vec<_> = numbered(10, 20).into_iter().chain([header.trim_end().into()]).collect();
        assert_eq!(lines, wanted, "{pattern}");
    }
}

#[test]
fn a_copy_waits_as_long_as_nothing_is_read() {
    let mut place = Place::new("a.log*");
    place.append("a.log", text(&numbered(0, 10)));
    assert_eq!(place.lines(), numbered(0, 10));
    place.append("a.log", text(&numbered(10, 20)));
    copy(&place);
    assert_eq!(place.lines(), numbered(10, 20));
    truncate(&place);
    place.append("a.log", text(&numbered(20, 30)));
    place.wait(seconds(60));
    assert_eq!(place.lines_within(seconds(10)), numbered(20, 30));
}

#[test]
fn a_content_that_was_truncated_and_then_renamed_comes_before_the_next() {
    let mut place = Place::new("a.log");
    place.append("a.log", text(&numbered(0, 10)));
    assert_eq!(place.lines(), numbered(0, 10));
    copy(&place);
    truncate(&place);
    place.append("a.log", text(&numbered(10, 20)));
    place.source.hint([], true, place.now);
    place.wait(seconds(1));
    place.rename("a.log", "a.log.2");
    place.append("a.log", text(&numbered(20, 30)));
    assert_eq!(place.lines_within(seconds(10)), numbered(10, 30));
}

#[test]
fn a_copy_whose_original_stays_is_a_file_like_any_other() {
    let mut place = Place::new("a.log*");
    place.append("a.log", text(&numbered(0, 10)));
    assert_eq!(place.lines(), numbered(0, 10));
    copy(&place);
    assert_eq!(place.lines(), [""; 0]);
    assert_eq!(place.lines_within(seconds(10)), numbered(0, 10));
}

#[test]
fn files_that_only_begin_alike_are_all_read_and_without_delay() {
    let mut place = Place::new("a.log*");
    let header = format!("{}\n", "# the same header ".repeat(20));
    place.append("a.log", format!("{header}one\n"));
    assert_eq!(place.lines().last().unwrap(), "one");
    place.append("a.log.new", format!("{header}two\n"));
    assert_eq!(place.lines().last().unwrap(), "two");
    truncate(&place);
    place.append("a.log", format!("{header}three\n"));
    assert_eq!(place.lines().last().unwrap(), "three");
    assert_eq!(place.lines_within(seconds(10)), [""; 0]);
}

#[test]
fn a_renamed_file_and_a_new_one_that_begins_alike_are_two() {
    let mut place = Place::new("a.log*");
    place.append("a.log", text(&numbered(0, 10)));
    assert_eq!(place.lines(), numbered(0, 10));
    place.rename("a.log", "a.log.1");
    place.append("a.log", text(&numbered(0, 5)));
    assert_eq!(place.lines(), numbered(0, 5));
}

#[test]
fn a_short_file_with_the_same_header_is_not_taken_for_the_copy_after_a_restart() {
    let mut place = Place::new("a.log");
    let line = |content| format!("# the same header in each file {content}");
    let text = format!("{} and more\n", line("a"));
    place.append("a.log", &text);
    assert_eq!(place.unfinished_lines().len(), 1);
    fs::remove_file(place.path("a.log")).unwrap();
    place.append("a.log.1", format!("{}\n", line("b")));
    place.append("a.log", format!("{}\n", line("c")));
    place.restart();
    assert_eq!(place.lines_within(seconds(10)), [line("c")]);
    assert_eq!(place.lost(), [("deleted", text.len() as u64)]);
}

#[test]
fn a_content_that_was_seen_and_is_gone_behind_a_copy_is_counted() {
    // Longer than what was read, and as long as the copy or shorter.
    for (pattern, length) in PATTERNS.into_iter().zip([100, 200]) {
        let mut place = half_read(pattern);
        place.restart();
        let next = "x".repeat(length - 1) + "\n";
        let file = place.append("a.log", &next);
        file.set_modified(SystemTime::now() + seconds(1)).unwrap();
        place.source.tick(place.now);
        fs::remove_file(place.path("a.log")).unwrap();
        assert_eq!(place.lines_within(seconds(10)), numbered(10, 20), "{pattern}");
        assert_eq!(place.lost(), [("deleted", length as u64)], "{pattern}");
    }
}
