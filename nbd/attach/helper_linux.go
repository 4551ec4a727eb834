package attach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
)

// Helper is what the processes do that drivers start (Config.Helper): the keeper, and every call to the kernel that
// waits for a device to be served. It writes its answer to stdout.
func Helper(ctx context.Context, args []string, stdout io.Writer) error {
	fail := func() error {
		return storage.E("help", storage.KindInvalid, strings.Join(args, " "), errors.New("the gateway starts this command by itself; there is nothing to do with it by hand"))
	}
	if len(args) < 2 {
		return fail()
	}
	switch args[0] {
	case "in-turn":
		if len(args) < 4 {
			return fail()
		}
		if err := awaitTurn(args[1]); err != nil {
			return err
		}
		return Helper(ctx, args[2:], stdout)
	case "keeper":
		if len(args) > 2 {
			return moveToHost(args[2], append(os.Args[:len(os.Args)-len(args)], "keeper", args[1]))
		}
		return runKeeper(ctx, args[1])
	case "loop-attach":
		device, err := loopAttach(args[1], len(args) > 2 && args[2] == "ro")
		if err == nil {
			_, err = fmt.Fprintln(stdout, device)
		}
		return err
	case "loop-resize":
		if len(args) != 3 {
			return fail()
		}
		return loopResize(args[1], args[2])
	case "io-timeout":
		if len(args) != 3 {
			return fail()
		}
		timeout, err := time.ParseDuration(args[2])
		if err != nil {
			return err
		}
		return setTimeout(args[1], timeout)
	case "loop-keep":
		return loopKeep(args[1])
	case "block-sync":
		return blockSync(args[1])
	case "device-sync":
		return deviceSync(args[1])
	case "device-unmount":
		return deviceUnmount(args[1], len(args) > 2 && args[2] == "lazy")
	case "loop-detach":
		if len(args) < 4 {
			return fail()
		}
		sequence, err := strconv.ParseUint(args[3], 10, 64)
		if err != nil {
			return err
		}
		return loopDetach(args[1], args[2], sequence, len(args) > 4 && args[4] == "force")
	}
	return fail()
}

// errBusy is what a helper says of a device that is in use, by its exit code.
var errBusy = errors.New("the device is in use")

// notLetGo says what it means that a device could not be let go: somebody uses it; or the kernel, which writes out first what it
// holds for it, had not done so in time, for that takes the cluster.
func notLetGo(path string, err error) error {
	switch {
	case errors.Is(err, errBusy):
		return storage.E("detach", storage.KindConflict, "device "+path,
			errors.New("it is in use; unmount it first, or force it: its users then get errors"))
	case storage.KindOf(err) != storage.KindCanceled:
		return err
	}
	return storage.E("detach", storage.KindUnavailable, "device "+path, fmt.Errorf("the kernel still reads it, or writes out what it holds for it, and the cluster does not answer or is slow; "+
		"try again when it does, or force it, and lose what is not stored: %w", err))
}

// HelperExitCode is the exit code for an error of Helper.
func HelperExitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errBusy):
		return exitBusy
	}
	return 1
}

const exitBusy = 75

// awaitTurn returns when this process has the lock on a file, which it keeps until it ends.
func awaitTurn(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	for {
		if err := unix.Flock(fd, unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("flock", err)
		}
	}
}

// helpInTurn is help after all that it was called for before for the same device has ended, also by a gateway that was killed since,
// or given up: such a helper may still have the device open, or the place where it is mounted, and would be taken for a user of it.
// What makes an end with a device that nobody serves must not come here: those before it may wait for just that.
func (c *Config) helpInTurn(ctx context.Context, name string, args ...string) error {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return storage.E("make", storage.KindIO, "directory "+c.Dir, err)
	}
	_, err := c.help(ctx, append([]string{"in-turn", c.turnFile(name)}, args...)...)
	return err
}

func (c *Config) turnFile(name string) string { return filepath.Join(c.Dir, name+".turn") }

// help runs a helper and returns what it printed. When ctx ends it is killed and left to itself: it may wait in the
// kernel for a device that nobody serves.
func (c *Config) help(ctx context.Context, args ...string) (string, error) {
	all := append(append([]string(nil), c.Helper...), args...)
	cmd := exec.Command(all[0], all[1:]...) // the operator's own binary
	var out, problems strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &problems
	cmd.Env = os.Environ()
	if err := cmd.Start(); err != nil {
		return "", storage.E("start", storage.KindInternal, "helper "+args[0], err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }() // ends with the process
	select {
	case err := <-done:
		return helped(args[0], strings.TrimSpace(out.String()), strings.TrimSpace(problems.String()), err)
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		return "", storage.E("wait for", storage.KindCanceled, "helper "+args[0], ctx.Err())
	}
}

func helped(what, out, problems string, err error) (string, error) {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return out, nil
	case errors.As(err, &exit) && exit.ExitCode() == exitBusy:
		return "", errBusy
	case problems != "":
		err = errors.New(problems)
	}
	return "", storage.E("run", storage.KindIO, "helper "+what, err)
}

func (c *Config) unmount(ctx context.Context, name, device string, lazy bool) error {
	if lazy {
		_, err := c.help(ctx, "device-unmount", device, "lazy")
		return err
	}
	err := c.helpInTurn(ctx, name, "device-unmount", device)
	if errors.Is(err, errBusy) {
		return storage.E("unmount", storage.KindConflict, "device "+device, errors.New("a file system on it is in use"))
	}
	return err
}
