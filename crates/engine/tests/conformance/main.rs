//! One suite for every engine: what `annulus_engine::Engine` promises, asked of each in its default
//! shape and in shapes that make its rare paths common (memtables that are flushed all the time,
//! views that outgrow memory).
//!
//! Power cuts are not simulated here; a clean close is.

mod aside;
mod bench;
mod model;
mod moments;
mod suite;

/// Runs each test on each variant.
macro_rules! on {
    ($($module:ident $variant:ident: $($suite:ident::$test:ident)*;)*) => {
        $(mod $module {
            use crate::bench::Variant;
            $(#[test]
            fn $test() {
                crate::$suite::$test(Variant::$variant);
            })*
        })*
    };
}

/// The tests that every variant passes, and those that need a disk.
macro_rules! conformance {
    ($($module:ident $variant:ident)*; $($disk_module:ident $disk_variant:ident)*) => {
        $(on! { $module $variant:
            suite::a_batch_is_applied_whole_and_its_last_change_wins
            suite::wrong_lengths_change_nothing
            suite::an_empty_value_is_not_an_absent_one
            suite::a_read_ends_where_it_has_enough
            suite::only_memory_never_waits
            suite::the_longest_keys_and_values_come_back
            suite::rows_come_in_order_and_in_pages
            suite::a_view_does_not_change
            suite::views_are_cut_to_their_range
            suite::a_range_is_deleted_and_its_neighbours_stay
            suite::stats_count_bytes
            moments::answers_are_of_one_moment
            model::any_sequence_matches_the_model;
        })*
        $(on! { $disk_module $disk_variant:
            suite::what_a_reopened_engine_holds_is_a_prefix
            suite::an_ended_view_leaves_nothing_behind
            aside::a_damaged_folder_is_moved_aside
            aside::a_folder_in_use_is_not_moved;
        })*
    };
}

conformance! {
    memory Memory
    fjall Fjall
    fjall_with_tiny_memtables FjallTiny
    sled Sled
    sled_with_spilled_views SledSpilling;
    fjall_on_disk Fjall
    fjall_with_tiny_memtables_on_disk FjallTiny
    sled_on_disk Sled
    sled_with_spilled_views_on_disk SledSpilling
}
