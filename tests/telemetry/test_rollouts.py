from rlcore.data.sample import Sample, Status
from rlcore.telemetry.rollouts import TRAINING, evaluation_kind, read_samples, sample_files, write_samples


def test_samples_come_back_as_they_were_written(tmp_path):
    sample = Sample(
        prompt="1 + 1", label="2", tokens=[5], log_probs=[-0.5], status=Status.COMPLETED, reward=1.0
    )
    path = write_samples(tmp_path, TRAINING, 12, [sample])
    assert path.name == "step-000012.jsonl"
    assert read_samples(path) == [sample]


def test_only_the_first_samples_are_kept(tmp_path):
    samples = [Sample(prompt=str(number)) for number in range(10)]
    assert read_samples(write_samples(tmp_path, TRAINING, 1, samples, limit=3)) == samples[:3]


def test_files_are_found_by_kind_in_the_order_of_steps(tmp_path):
    for kind, step in [("sums", 20), ("sums", 3), ("sums-hard", 4)]:
        write_samples(tmp_path, evaluation_kind(kind), step, [])
    assert list(sample_files(tmp_path, evaluation_kind("sums"))) == [3, 20]


def test_a_name_that_is_no_file_name_stays_inside_the_folder(tmp_path):
    path = write_samples(tmp_path, evaluation_kind("../../evil set"), 1, [])
    assert path.parent == tmp_path
    assert list(sample_files(tmp_path, evaluation_kind("../../evil set")).values()) == [path]
