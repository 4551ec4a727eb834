package attach

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

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
	case "block-sync":
		return blockSync(args[1])
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

// help runs a helper and returns what it printed. When ctx ends it is killed and left to itself: it may wait in the
// kernel for a device that nobody serves.
func (c *Config) help(ctx context.Context, args ...string) (string, error) {
	all := append(append([]string(nil), c.Helper...), args...)
	cmd := exec.Command(all[0], all[1:]...) //nolint:gosec // the operator's own binary
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
