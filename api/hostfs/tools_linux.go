package hostfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/utils/exec"
)

// toolDirs are where the tools for file systems lie, below the root. The last one is NixOS'.
var toolDirs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/run/current-system/sw/bin"}

// tools runs the programs of the system below root. If that is the host's root directory, mkfs, fsck and resize2fs are those that
// the host's distribution has matched to the host's kernel, and an image needs none. It implements exec.Interface for
// k8s.io/mount-utils.
type tools struct {
	ctx  context.Context // ends those that run; of the call that they are for
	root string
	dirs []string
}

var _ exec.Interface = tools{}

// LookPath implements exec.Interface; the path that it returns is below the root.
func (t tools) LookPath(file string) (string, error) {
	if filepath.IsAbs(file) {
		return file, nil
	}
	for _, dir := range t.dirs {
		path := filepath.Join(dir, file)
		// Not Stat: a link may lead to an absolute path, which is to be read below the root.
		if info, err := os.Lstat(filepath.Join(t.root, path)); err == nil && !info.IsDir() {
			return path, nil
		}
	}
	return "", exec.ErrExecutableNotFound
}

// Command implements exec.Interface.
func (t tools) Command(name string, args ...string) exec.Cmd {
	return t.CommandContext(t.ctx, name, args...)
}

// CommandContext implements exec.Interface.
func (t tools) CommandContext(ctx context.Context, name string, args ...string) exec.Cmd {
	path, err := t.LookPath(name)
	c := osexec.CommandContext(ctx, "/"+name) // an absolute path is not looked up outside the root
	c.Path, c.Args, c.Dir, c.Err = path, append([]string{name}, args...), "/", err
	c.Env = []string{"LC_ALL=C", "PATH=" + strings.Join(t.dirs, ":")}
	// A tool does not outlive the driver: another driver would not know what it works on.
	c.SysProcAttr = &syscall.SysProcAttr{Chroot: t.root, Pdeathsig: syscall.SIGKILL, Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) } // with what it has started
	c.WaitDelay = toolDelay
	return &tool{c}
}

// toolDelay is how long a tool that has ended is waited for the ends of what it has started, which may keep its output open.
const toolDelay = 5 * time.Second

// maxToolOutput bounds what is kept of what a tool prints.
const maxToolOutput = 64 << 10

// tool is one run of a program; it implements exec.Cmd.
type tool struct{ cmd *osexec.Cmd }

func (t *tool) Run() error                         { return toolError(t.run()) }
func (t *tool) Start() error                       { return toolError(t.cmd.Start()) }
func (t *tool) Wait() error                        { return toolError(t.cmd.Wait()) }
func (t *tool) SetDir(dir string)                  { t.cmd.Dir = dir }
func (t *tool) SetStdin(in io.Reader)              { t.cmd.Stdin = in }
func (t *tool) SetStdout(out io.Writer)            { t.cmd.Stdout = out }
func (t *tool) SetStderr(out io.Writer)            { t.cmd.Stderr = out }
func (t *tool) SetEnv(env []string)                { t.cmd.Env = slices.Clone(env) }
func (t *tool) StdoutPipe() (io.ReadCloser, error) { return t.cmd.StdoutPipe() }
func (t *tool) StderrPipe() (io.ReadCloser, error) { return t.cmd.StderrPipe() }

// run keeps the thread that starts the tool: the kernel takes the thread's end for the parent's, and kills the tool.
func (t *tool) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return t.cmd.Run()
}

// CombinedOutput implements exec.Cmd.
func (t *tool) CombinedOutput() ([]byte, error) {
	var out head
	t.cmd.Stdout, t.cmd.Stderr = &out, &out
	err := t.run()
	return out.Bytes(), toolError(err)
}

// Output implements exec.Cmd.
func (t *tool) Output() ([]byte, error) {
	var out head
	t.cmd.Stdout = &out
	err := t.run()
	return out.Bytes(), toolError(err)
}

// Stop implements exec.Cmd: SIGTERM, and SIGKILL ten seconds later.
func (t *tool) Stop() {
	if p := t.cmd.Process; p != nil {
		_ = p.Signal(syscall.SIGTERM) // it may have ended
		time.AfterFunc(10*time.Second, func() { _ = p.Kill() })
	}
}

// toolError turns the errors of os/exec into those that mount-utils knows.
func toolError(err error) error {
	var exited *osexec.ExitError
	switch {
	case errors.As(err, &exited):
		return &exec.ExitErrorWrapper{ExitError: exited}
	case errors.Is(err, os.ErrNotExist):
		return exec.ErrExecutableNotFound
	}
	return err
}

// head keeps the beginning of what is written to it. It embeds no buffer: that has a ReadFrom, which io.Copy prefers to Write, and
// which knows no limit.
type head struct{ kept bytes.Buffer }

// Write implements io.Writer.
func (h *head) Write(p []byte) (int, error) {
	_, err := h.kept.Write(p[:min(len(p), maxToolOutput-h.kept.Len())])
	return len(p), err
}

// Bytes returns what was kept.
func (h *head) Bytes() []byte { return h.kept.Bytes() }
