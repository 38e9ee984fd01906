"""Fifteen ways to fail, and the tests that make them happen.

All start real processes, on SQLite, files and a local folder, and again on PostgreSQL, Redis and S3. Those that take
long have the mark `faults`: `make test-faults` runs everything in this folder, `make test` the rest. What can be said
about one part alone is tested there as well, as named.

 1. Worker and child killed by -9: a new attempt within lease and sweep, one result.
    faults/test_lost_processes.py::test_killed_worker_and_child_with_another_at_hand
    faults/test_lost_processes.py::test_killed_worker
    faults/test_lost_processes.py::test_child_dies_once
 2. A worker stopped beyond its lease and resumed is fenced off.
    faults/test_lost_processes.py::test_stopped_worker_is_fenced_off
    faults/test_lost_processes.py::test_worker_that_wakes_up_after_the_end_changes_nothing
    ../catalog/test_leases.py::test_a_worker_that_lost_its_job_cannot_write
 3. One message three times: one run.
    faults/test_messages.py::test_one_message_three_times
    faults/test_messages.py::test_three_messages_at_once_for_one_job
 4. A job longer than the broker's visibility timeout: one run.
    faults/test_messages.py::test_a_job_longer_than_the_visibility_timeout
 5. Redis killed, wiped and restarted while fifty wait.
    faults/test_messages.py::test_redis_killed_wiped_and_restarted
    faults/test_messages.py::test_wiped_broker
 6. API killed between its commit and its message.
    faults/test_messages.py::test_api_killed_between_its_commit_and_its_message
    faults/test_messages.py::test_job_that_nobody_was_told_of
    faults/test_lost_processes.py::test_api_killed_while_jobs_are_submitted
 7. A child that dies every time: failed after the last attempt, the worker healthy.
    faults/test_lost_processes.py::test_child_dies_every_time
 8. Cancelled in every phase, and in a race with the end.
    faults/test_cancel.py::test_in_every_phase
    faults/test_cancel.py::test_queued
    faults/test_cancel.py::test_racing_with_the_end
    ../catalog/test_leases.py::test_a_cancel_request_wins_over_publishing
 9. All processes told to go, one after another, under load.
    faults/test_under_load.py::test_rolling_restart_under_load
    faults/test_lost_processes.py::test_worker_told_to_go_gives_its_job_back
10. One Idempotency-Key twenty times at once.
    faults/test_under_load.py::test_one_idempotency_key_twenty_times_at_once
11. Upload cut, resumed, corrupted; a full disk.
    faults/test_bodies.py::test_upload_cut_corrupted_and_resumed
    faults/test_bodies.py::test_full_disk
    test_bad_input.py::test_full_disk
12. Slow bodies, and ten gigabytes too many, while others are served.
    faults/test_bodies.py::test_slow_bodies_and_an_overrun
13. Hostile files: no other file touched, no packet sent.
    test_hostile.py::test_hostile_files
    ../hostile/test_corpus.py::test_hostile_file
    ../hostile/test_payload.py::test_a_payload_that_runs_in_the_sandbox_reaches_nothing
    ../workers/test_confinement.py::test_bubblewrap_shows_the_libraries_and_nothing_else
14. Receivers of webhooks that fail, hang, redirect to metadata addresses or rebind their name; rotation.
    test_webhooks.py::test_a_receiver_that_fails_first
    faults/test_receivers.py::test_a_receiver_that_hangs_drips_and_comes_back
    faults/test_receivers.py::test_a_name_that_changes_its_mind
    test_webhooks.py::test_a_worker_killed_while_it_sends
15. A stream of events dropped and resumed, across a restart of the API.
    faults/test_lost_processes.py::test_event_stream_survives_the_api
    faults/test_streams.py::test_stream_dropped_and_resumed_at_another_process

Beyond these, connections to the database are cut, and all of it comes at random for half an hour (`make test-soak`).
    faults/test_under_load.py::test_database_connections_cut
    soak/test_soak.py::test_soak
"""
