import logging

from rlcore.telemetry.events import EventLog, read_events
from rlcore.telemetry.notices import noticed


def test_what_a_module_warns_of_is_shown_and_recorded_while_a_run_goes_on(tmp_path):
    events, shown = EventLog(tmp_path / "events.jsonl", attempt=2), []
    logger = logging.getLogger("rlcore.somewhere")
    with noticed(events, shown.append):
        logger.warning("server %s is lost", 3)
        logger.info("nothing to see")
    logger.warning("nobody listens")
    (event,) = read_events(tmp_path / "events.jsonl")
    assert shown == [event["text"]] == ["server 3 is lost"]
    assert (event["kind"], event["source"], event["attempt"]) == ("warning", "rlcore.somewhere", 2)
