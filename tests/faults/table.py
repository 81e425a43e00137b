"""The fault matrix: what may go wrong, how it is made to, what must come of it, and the tests that do so. Data alone: `make faults`
runs the tests of each row, the slow ones too, and prints it."""

from __future__ import annotations

from dataclasses import dataclass

LOOP, SIGNALS, STOPS = (
    "tests/training/test_loop.py",
    "tests/training/test_signals.py",
    "tests/training/test_interruptions.py",
)
IMAGES, DATA, TRACKERS = "tests/data/test_images.py", "tests/data/test_load.py", "tests/reporting/test_trackers.py"
CACHE, CHECKPOINTS = "tests/training/prefix_cache/test_faults.py", "tests/training/test_checkpoints.py"
SAVED, CODE, FITS = (
    "tests/injection/test_saved.py",
    "tests/backbones/test_pretrained.py",
    "tests/training/test_fitting.py",
)
OVERFLOW = "tests/training/test_overflow.py"
RUNS, STORMS, FOLDER = "tests/faults/test_runs.py", "tests/faults/test_storms.py", "tests/runs/test_folder.py"


@dataclass(frozen=True)
class Row:
    """A fault.

    Attributes:
        number: its row.
        fault: what goes wrong.
        injection: how it is made to.
        expected: what must come of it.
        tests: that do so: FILE::FUNCTION.
        stage: the stage of `scripts/gpu_check.py` that does so on a GPU, where that is what the row is of; the tests then go its
            way on a CPU.
    """

    number: int
    fault: str
    injection: str
    expected: str
    tests: tuple[str, ...]
    stage: str = ""


ROWS = (
    Row(
        1, "SIGKILL at random moments", "20 kills, with the cache and without", "the adapter, the course and the scores of a run "
        "left alone, bit for bit",
        (f"{STOPS}::test_killed_at_random_steps", f"{STORMS}::test_twenty_kills_at_random_moments"),
    ),
    Row(
        2, "the same seed on a GPU", "a run stopped and continued, and one twice", "the same bits",
        (f"{RUNS}::test_one_seed_is_one_adapter",), "resume",
    ),
    Row(
        3, "a kill inside a save, or between its renames", "SIGKILL at a flush, at each rename", "the checkpoint before goes on, "
        "to the same bits",
        (
            f"{RUNS}::test_a_kill_at_each_rename", f"{STOPS}::test_killed_while_saving",
            "tests/training/test_resume.py::test_sigkill_at_random_steps_and_during_a_save",
        ),
    ),
    Row(
        4, "SIGTERM, SIGINT in a step", "the signal, to the group of processes", "saved after the step; status 143, 130; goes on",
        (f"{STOPS}::test_a_signal_saves_says_how_to_continue_and_continues",),
    ),
    Row(
        5, "the same elsewhere", "a signal in start-up, check, loading, cache, evaluation, test split, writing, predict",
        "a line that says what is kept, and the command goes on",
        (
            f"{SIGNALS}::test_at_every_moment_it_says_what_is_kept_and_the_command_goes_on",
            f"{STOPS}::test_a_signal_in_an_evaluation_saves_and_the_evaluation_is_done_again",
            "tests/verbs/test_eval.py::test_what_is_stopped_goes_on_after_the_last_batch",
            "tests/training/test_journal.py::test_it_is_written_as_it_goes_so_that_a_kill_loses_little",
            f"{RUNS}::test_a_signal_in_a_prediction",
        ),
    ),
    Row(
        6, "a second signal", "Ctrl-C twice", "the first is answered at once, the second leaves",
        (f"{STOPS}::test_a_second_ctrl_c_quits_at_once", f"{SIGNALS}::test_the_first_is_noted_and_answered_and_the_second_leaves"),
    ),
    Row(
        7, "a full disk at each write", "the n-th file that is flushed finds no room; a small disk of its own", "one line, status "
        "2, and the command goes on to the same bits; behind cache and log it only warns",
        (
            f"{STORMS}::test_a_disk_that_is_full_at_each_write", f"{STORMS}::test_a_disk_that_is_really_full",
            f"{CHECKPOINTS}::test_a_full_disk_is_told_with_what_to_do_and_harms_nothing",
            f"{CACHE}::test_a_disk_that_is_full_in_the_middle_is_told_and_the_rest_is_computed_each_time",
        ),
    ),
    Row(
        8, "each file of a checkpoint damaged", "flipped, cut, removed", "told, and the one before goes on",
        (
            f"{CHECKPOINTS}::test_damage_is_seen_told_and_gone_behind",
            f"{LOOP}::test_a_damaged_checkpoint_is_told_and_the_one_before_continues",
        ),
    ),
    Row(
        9, "pickles in the place of weights", "a pickle that runs a command, as weights of a checkpoint, an adapter, a backbone",
        "nothing runs; one line, or the checkpoint before",
        (f"{RUNS}::test_a_pickle_is_not_executed", f"{CHECKPOINTS}::test_nothing_in_a_checkpoint_can_execute"),
    ),
    Row(
        10, "code in configurations", "auto_map, _target_, interpolations", "refused by name, nothing runs",
        (
            f"{CODE}::test_every_call_that_reads_a_checkpoint_refuses_its_code",
            f"{CODE}::test_a_kind_of_model_that_comes_as_code_is_refused",
            f"{CODE}::test_an_image_processor_that_comes_as_code_is_refused",
            "tests/verbs/test_train.py::test_a_text_that_looks_like_an_interpolation_is_no_other_configuration",
        ),
    ),
    Row(
        11, "an adapter that does not fit", "of another backbone or size, tensors missing or too many", "one line that says which",
        (
            f"{SAVED}::test_a_backbone_without_its_points_is_refused", f"{SAVED}::test_tensors_that_do_not_fit_are_refused",
            f"{SAVED}::test_our_own_loading_refuses_them_for_every_method",
            f"{SAVED}::test_a_bit_that_flipped_or_a_file_that_is_gone_is_refused",
        ),
    ),
    Row(
        12, "NaN or infinity", "in the loss, in a gradient", "stops before the step, names the samples",
        (
            f"{LOOP}::test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_samples",
            f"{LOOP}::test_a_gradient_that_is_not_finite_stops_too",
            "tests/training/test_outcomes.py::test_what_is_not_finite_changes_no_weights",
        ),
    ),
    Row(
        13, "overflow in fp16", "a loss scale under which gradients overflow; activations beyond 65,504", "the step is left out, "
        "the scale halved, and it goes on, to the same bits if it was stopped; computed in fp32",
        (
            f"{OVERFLOW}::test_a_step_that_overflows_is_left_out_and_told",
            f"{OVERFLOW}::test_it_goes_on_with_its_scale_to_the_same_bits",
            f"{OVERFLOW}::test_what_always_overflows_ends_in_a_line",
            "tests/training/test_modes.py::test_what_overflows_in_fp16_is_computed_in_fp32",
        ),
    ),
    Row(
        14, "broken images", "cut, empty, no image", "named by file; a small share is left out and listed",
        (
            f"{IMAGES}::test_unreadable_images_name_the_file", f"{DATA}::test_a_share_of_broken_images_is_left_out_and_listed",
            f"{DATA}::test_a_greater_share_is_refused_with_its_count",
        ),
    ),
    Row(
        15, "decompression bombs", "many megapixels in few bytes", "refused from the header; threads share a budget",
        (
            f"{IMAGES}::test_a_bomb_is_refused_from_its_header_and_what_is_allowed_is_not",
            f"{IMAGES}::test_threads_decode_no_more_pixels_at_once_than_there_is_room_for",
            f"{IMAGES}::test_formats_that_start_other_programs_are_not_opened",
            f"{IMAGES}::test_a_pipe_is_refused_and_not_waited_for",
        ),
    ),
    Row(
        16, "unusual image modes", "each mode of Pillow, 16 bit, animations, EXIF", "RGB, upright, scaled",
        (
            f"{IMAGES}::test_every_mode_becomes_rgb", f"{IMAGES}::test_16_bit_is_scaled_not_clipped",
            f"{IMAGES}::test_animation_gives_its_first_frame", f"{IMAGES}::test_damaged_exif_is_no_reason_to_refuse",
        ),
    ),
    Row(
        17, "many data faults at once", "files with each kind", "all in one answer, each with its place, by kind where many",
        (f"{DATA}::test_everything_wrong_is_reported_at_once", f"{DATA}::test_many_problems_are_counted_by_kind"),
    ),
    Row(
        18, "too little data", "none, fewer than a batch, all left out", "refused before the weights, with what to set",
        (
            f"{DATA}::test_too_few_images", f"{DATA}::test_nothing_to_split_off", f"{DATA}::test_what_is_left_must_be_enough",
            "tests/data/test_hub.py::test_an_empty_stream_is_an_empty_split",
        ),
    ),
    Row(
        19, "misspelt options", "keys, values, groups, verbs", "one line each, with what was meant, status 2",
        (
            "tests/cli/test_main.py::test_wrong_input_is_refused",
            "tests/cli/test_main.py::test_an_unknown_verb_is_refused_with_what_was_meant",
        ),
    ),
    Row(
        20, "GPU out of memory", "a device with less room than it tells", "the passes are halved, or it is said what would fit",
        (
            f"{FITS}::test_passes_that_do_not_run_are_halved", f"{FITS}::test_a_device_with_less_room_than_is_told_is_tried",
            "tests/training/test_out_of_memory.py::test_what_would_fit_fits",
        ),
        "fits",
    ),
    Row(
        21, "a worker killed or stopped", "SIGKILL or SIGSTOP to a worker of a run that has begun", "one line, status 2, and the "
        "command goes on",
        (
            f"{RUNS}::test_a_worker_that_is_killed",
            f"{RUNS}::test_a_killed_worker_is_one_line_and_the_others_are_not_waited_for",
            "tests/training/test_batches.py::test_a_worker_that_is_stopped_or_killed_is_named",
        ),
    ),
    Row(
        22, "a tracker without key or server", "a logger that raises", "one warning; the training goes on",
        (
            f"{TRACKERS}::test_a_failing_tracker_is_told_once_and_left_alone",
            f"{TRACKERS}::test_a_missing_package_is_refused_when_chosen_and_is_no_matter_to_an_evaluation",
        ),
    ),
    Row(
        23, "resume with changed options", "another rate, other data", "refused, with the difference",
        (f"{RUNS}::test_a_changed_option_is_refused_with_the_difference",),
    ),
    Row(
        24, "two runs in one folder", "a second process, and what a killed one left", "the second is refused, a stale lock taken",
        (
            f"{FOLDER}::test_one_process_at_a_time", f"{FOLDER}::test_a_killed_process_is_no_owner",
            f"{STORMS}::test_two_processes_in_one_folder",
        ),
    ),
    Row(
        25, "a frozen weight moves", "a weight changed behind the loop's back", "the run ends with an error",
        (f"{LOOP}::test_a_frozen_weight_that_moves_is_an_error",),
    ),
    Row(
        26, "one seed, 0, 2, 4 workers", "the same run with each", "the same bits",
        (f"{RUNS}::test_workers_change_no_bit", f"{LOOP}::test_workers_and_evaluations_change_nothing"),
    ),
    Row(
        27, "batch x accumulate", "one batch, and its parts", "the same step",
        (f"{LOOP}::test_accumulation_equals_a_large_batch_also_at_the_end_of_an_epoch",),
    ),
    Row(
        28, "a metric that needs Java", "no Java, or one that fails", "the score is skipped, and why is said",
        (
            "tests/metrics/test_caption.py::test_without_java_the_optional_scores_are_skipped",
            "tests/metrics/test_caption.py::test_a_java_program_that_fails_costs_its_own_score_only",
        ),
    ),
)  # fmt: skip
