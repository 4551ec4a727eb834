package testcluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Node is one storaged process, running or not.
type Node struct {
	// Name, Zone and the addresses (host:port) under which the node is started.
	Name, Zone           string
	Peer, API, NBD, HTTP string
	// DataDir is its data directory, LogPath the file with what it printed, over all its starts.
	DataDir, LogPath string

	cfg    Config
	prefix []string
	args   []string // Config.Args and NodeArgs

	mu       sync.Mutex // guards what follows; never held while waiting
	proc     *process   // nil when not running
	paused   bool
	wasReady bool // has been ready once: it belongs to a cluster
}

// process is one start of a node.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed by the waiter, after err is set
	err    error
}

func newNode(cfg Config, i int, taken map[int]bool) (*Node, error) {
	name := "node" + strconv.Itoa(i+1)
	n := &Node{
		Name: name, Zone: "zone" + strconv.Itoa(i+1), cfg: cfg,
		DataDir: filepath.Join(cfg.Dir, name), LogPath: filepath.Join(cfg.Dir, name+".log"),
	}
	if cfg.Prefix != nil {
		n.prefix = cfg.Prefix(i)
	}
	n.args = slices.Clone(cfg.Args)
	if cfg.NodeArgs != nil {
		n.args = append(n.args, cfg.NodeArgs(i)...)
	}
	host := cfg.Host(i)
	ports := cfg.Ports
	if ports == nil {
		free, err := freePorts(host, 4, taken)
		if err != nil {
			return nil, err
		}
		ports = &Ports{Peer: free[0], API: free[1], NBD: free[2], HTTP: free[3]}
	}
	addr := func(port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }
	n.Peer, n.API, n.NBD, n.HTTP = addr(ports.Peer), addr(ports.API), addr(ports.NBD), addr(ports.HTTP)
	return n, nil
}

// Ports are drawn from below the range that Linux gives to outgoing connections (ip_local_port_range, from 32768):
// one of those could take a port between the look and the start of the node, or while the node is restarted.
const firstPort, endPort = 15000, 30000

// FreePorts returns count different TCP ports of host that were free a moment ago.
func FreePorts(host string, count int) ([]int, error) {
	return freePorts(host, count, map[int]bool{})
}

// freePorts is FreePorts without the ports in taken, to which it adds what it returns.
func freePorts(host string, count int, taken map[int]bool) ([]int, error) {
	var ports []int
	var last error
	for attempt := 0; len(ports) < count; attempt++ {
		if attempt == 1000 {
			return nil, fmt.Errorf("testcluster: no free port of %s in 1000 attempts: %w", host, last)
		}
		port := firstPort + rand.IntN(endPort-firstPort)
		if taken[port] {
			continue
		}
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			last = err
			continue
		}
		_ = l.Close()
		taken[port] = true
		ports = append(ports, port)
	}
	return ports, nil
}

// serveArgs is the one place that knows storaged's command line.
func (n *Node) serveArgs(join string) []string {
	args := []string{"serve", "--data-dir", n.DataDir, "--name", n.Name, "--zone", n.Zone,
		"--listen-peer", n.Peer, "--listen-api", n.API, "--listen-nbd", n.NBD, "--listen-http", n.HTTP}
	if join != "" {
		args = append(args, "--join", join)
	}
	return append(args, n.args...)
}

// CommandLine returns what starts the node again; join is the peer address of the node to join, empty for none.
func (n *Node) CommandLine(join string) []string {
	return slices.Concat(n.prefix, n.cfg.Command, n.serveArgs(join))
}

// start starts the process, by line, and returns at once.
func (n *Node) start(line []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc != nil {
		return fmt.Errorf("testcluster: %s runs already", n.Name)
	}
	log, err := os.OpenFile(n.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("testcluster: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !n.cfg.Detach {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("testcluster: start %s: %w", n.Name, err)
	}
	p := &process{cmd: cmd, exited: make(chan struct{})}
	n.proc, n.paused = p, false
	go n.wait(p)
	return nil
}

// wait ends with the process.
func (n *Node) wait(p *process) {
	p.err = p.cmd.Wait()
	n.mu.Lock()
	if n.proc == p {
		n.proc = nil
	}
	n.mu.Unlock()
	close(p.exited)
}

// WaitReady returns when the node answers that it is ready, and an error with the end of its log when it ends
// before, or is not ready in time.
func (n *Node) WaitReady(ctx context.Context) error {
	n.mu.Lock()
	p := n.proc
	n.mu.Unlock()
	if p == nil {
		return n.failure("does not run")
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.ReadyTimeout)
	defer cancel()
	why := ""
	ready, dead := false, false
	err := Poll(ctx, 20*time.Millisecond, func() bool {
		select {
		case <-p.exited:
			dead = true
		default:
			why = n.ready(ctx)
			ready = why == ""
		}
		return ready || dead
	})
	switch {
	case dead:
		return n.failure(fmt.Sprintf("ended before it was ready: %v", p.err))
	case err != nil:
		return n.failure(fmt.Sprintf("is not ready after %v: %s", n.cfg.ReadyTimeout, why))
	}
	n.mu.Lock()
	n.wasReady = true
	n.mu.Unlock()
	return nil
}

// ready returns why the node is not ready; empty when it is.
func (n *Node) ready(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTP+"/readyz", nil)
	if err != nil {
		return err.Error()
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return ""
	}
	var body bytes.Buffer
	_, _ = body.ReadFrom(http.MaxBytesReader(nil, resp.Body, 4<<10))
	return resp.Status + ": " + body.String()
}

func (n *Node) failure(what string) error {
	return fmt.Errorf("testcluster: %s %s; the end of %s:\n%s", n.Name, what, n.LogPath, n.LogTail(20))
}

// LogTail returns the last lines of the node's log.
func (n *Node) LogTail(lines int) string {
	b, err := os.ReadFile(n.LogPath)
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimRight(b, "\n"), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

func (n *Node) joined() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.wasReady
}

// PID returns the process's id, 0 when it does not run.
func (n *Node) PID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc == nil {
		return 0
	}
	return n.proc.cmd.Process.Pid
}

// Paused says whether the node is stopped by Pause.
func (n *Node) Paused() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.paused
}

// signal sends sig and returns the process that got it.
func (n *Node) signal(sig syscall.Signal) (*process, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc == nil {
		return nil, fmt.Errorf("testcluster: %s does not run", n.Name)
	}
	if err := n.proc.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return nil, fmt.Errorf("testcluster: %s: %w", n.Name, err)
	}
	switch sig {
	case syscall.SIGSTOP:
		n.paused = true
	case syscall.SIGCONT:
		n.paused = false
	}
	return n.proc, nil
}

// Kill ends the node by SIGKILL and returns when the process is gone.
func (n *Node) Kill() error {
	p, err := n.signal(syscall.SIGKILL)
	if err == nil {
		<-p.exited
	}
	return err
}

// Pause freezes the node (SIGSTOP) and returns when all of its threads stand still: on busy cores that takes
// milliseconds, in which a node answers dozens of requests.
func (n *Node) Pause() error {
	p, err := n.signal(syscall.SIGSTOP)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return Poll(ctx, time.Millisecond, func() bool { return stopped(p.cmd.Process.Pid) })
}

// stopTimeout bounds how long Pause waits.
const stopTimeout = 10 * time.Second

// stopped reports whether all threads of the process are stopped by a signal, or gone (proc(5), /proc/PID/task/TID/stat).
func stopped(pid int) bool {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid)) // the pattern is good
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		state := bytes.TrimLeft(text[bytes.LastIndexByte(text, ')')+1:], " ")
		if len(state) > 0 && !strings.ContainsRune("TZX", rune(state[0])) {
			return false
		}
	}
	return true
}

// Resume thaws it (SIGCONT).
func (n *Node) Resume() error { _, err := n.signal(syscall.SIGCONT); return err }

// Stop ends the node by SIGTERM; when it is still there as ctx is done, by SIGKILL, which is an error, as is an
// exit with another status than 0. It does nothing when the node does not run.
func (n *Node) Stop(ctx context.Context) error {
	if n.PID() == 0 {
		return nil
	}
	if n.Paused() {
		if err := n.Resume(); err != nil {
			return err
		}
	}
	p, err := n.signal(syscall.SIGTERM)
	if err != nil {
		if n.PID() == 0 { // ended meanwhile
			return nil
		}
		return err
	}
	select {
	case <-p.exited:
	case <-ctx.Done():
		_ = n.Kill() // it may have ended meanwhile
		<-p.exited
		return n.failure("did not end at SIGTERM and was killed")
	}
	if p.err != nil {
		return n.failure(fmt.Sprintf("ended badly at SIGTERM: %v", p.err))
	}
	return nil
}
