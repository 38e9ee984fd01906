from __future__ import annotations

from contextlib import contextmanager

import pytest

from tests.acceptance import processes
from tests.acceptance.backends import NAMES, backend
from tests.acceptance.conftest import upload_inputs
from tests.acceptance.harness import Service


@pytest.fixture(params=NAMES)
def fresh(request, tmp_path):
    """Makes a service of the test's own, with other settings, that nothing may be left of; gives its inputs."""
    processes.adopt_orphans()

    @contextmanager
    def make(*, own_redis=False, data_dir=tmp_path / "data", **settings):
        with backend(request.param, data_dir, own_redis=own_redis) as chosen:
            service = Service(tmp_path, chosen, data_dir, **settings)
            try:
                service.ensure()
                yield upload_inputs(service)
                service.ensure()
                service.assert_tidy()
            except BaseException:
                service.print_logs()
                service.reset()
                raise
            finally:
                service.stop()

    return make
