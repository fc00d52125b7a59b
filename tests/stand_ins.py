"""What stands in for a machine in several tests: files by path, and a clock that only sleeping moves."""

from pytest_gpuaccept.errors import Unmeasurable


class Files:
    """A machine of files: `files` by path, where None is as good as none, and whatever clock a test needs."""

    def __init__(self, files, clock=None):
        self.files, self.clock = dict(files), clock

    def read(self, path):
        """Return a file as the world does."""
        if self.files.get(path) is None:
            message = f"{path} cannot be read: No such file or directory"
            raise Unmeasurable(message)
        return self.files[path].strip()

    def names(self, path):
        """List a folder as the world does."""
        found = {file.removeprefix(f"{path}/").split("/")[0] for file in self.files if file.startswith(f"{path}/")}
        if not found:
            message = f"{path} cannot be listed: No such file or directory"
            raise Unmeasurable(message)
        return sorted(found)


class Sleeper:
    """A clock that moves when it sleeps."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        """Return the seconds passed."""
        return self.now

    def sleep(self, seconds):
        """Let time pass; time does not pass backwards."""
        assert seconds >= 0
        self.now += seconds
