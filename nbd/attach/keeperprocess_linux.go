package attach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/clock"
)

// The keeper's protocol, on a unix socket of type seqpacket, one request and one answer a packet: a letter and a name,
// with a descriptor beside a 'K'; the answer is "ok", with a descriptor beside that to a 'G' that found one, or "!" and
// what is wrong. It must stay as it is: a keeper of an older version serves the gateways of newer ones.
const (
	keepRequest   = 'K'
	getRequest    = 'G'
	forgetRequest = 'F'
	keeperOK      = "ok"

	maxKeeperPacket = 512
	maxKept         = 4096 // descriptors
	keeperTimeout   = 5 * time.Second
)

// KeeperProcess is a Keeper that is a process of its own. It is started when it is not there, and outlives its users; it
// ends when it holds nothing and nobody is connected. It is made by NewKeeperProcess.
type KeeperProcess struct {
	socket string
	helper []string
	host   string // the directory in /proc of the host's first process, to whose namespaces a keeper moves; empty: it does not

	mu   sync.Mutex    // guards what follows; held for one request
	conn *net.UnixConn // nil: not connected
}

// NewKeeperProcess returns the keeper that listens at socket, a path. helper is Config.Helper.
func NewKeeperProcess(socket string, helper []string) *KeeperProcess {
	return &KeeperProcess{socket: socket, helper: helper}
}

// OnHost has a keeper that is started leave this process' container, so that it outlives that. The socket must have the same
// path on the host. It is called before all else.
func (k *KeeperProcess) OnHost() { k.host = "/proc/1" }

// Close ends the connection. The keeper lives on if it holds anything.
func (k *KeeperProcess) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conn != nil {
		_ = k.conn.Close()
		k.conn = nil
	}
	return nil
}

// Keep implements Keeper.
func (k *KeeperProcess) Keep(name string, f *os.File) error {
	_, err := k.ask(keepRequest, name, f)
	return err
}

// Kept implements Keeper.
func (k *KeeperProcess) Kept(name string) (*os.File, error) { return k.ask(getRequest, name, nil) }

// Forget implements Keeper.
func (k *KeeperProcess) Forget(name string) error {
	_, err := k.ask(forgetRequest, name, nil)
	return err
}

// ask makes one request, on a new connection if the old one has ended. Every request may be repeated.
func (k *KeeperProcess) ask(what byte, name string, f *os.File) (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for attempt := 0; ; attempt++ {
		err := k.connectLocked()
		if err == nil {
			var got *os.File
			if got, err = exchange(k.conn, what, name, f); err == nil || storage.KindOf(err) == storage.KindInvalid {
				return got, err
			}
			_ = k.conn.Close()
			k.conn = nil
		}
		if attempt > 0 {
			return nil, storage.E("ask", storage.KindUnavailable, "keeper "+k.socket, err)
		}
	}
}

func exchange(conn *net.UnixConn, what byte, name string, f *os.File) (*os.File, error) {
	var rights []byte
	if f != nil {
		var err error
		if rights, err = rightsOf(f); err != nil {
			return nil, err
		}
	}
	_ = conn.SetDeadline(time.Now().Add(keeperTimeout))
	if _, _, err := conn.WriteMsgUnix(append([]byte{what}, name...), rights, nil); err != nil {
		return nil, err
	}
	answer, got, err := receive(conn)
	switch {
	case err != nil:
		return nil, err
	case answer == keeperOK:
		return got, nil
	}
	if got != nil {
		_ = got.Close()
	}
	return nil, storage.E("keep", storage.KindInvalid, "descriptor "+name, errors.New(strings.TrimPrefix(answer, "!")))
}

// rightsOf returns the message that hands a descriptor over. File.Fd would make it, and all its duplicates, blocking.
func rightsOf(f *os.File) (rights []byte, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	err = raw.Control(func(fd uintptr) { rights = unix.UnixRights(int(fd)) })
	return rights, err
}

// receive reads one packet and the descriptor beside it, if there is one.
func receive(conn *net.UnixConn) (text string, f *os.File, err error) {
	var packet [maxKeeperPacket]byte
	var oob [128]byte
	n, oobn, flags, _, err := conn.ReadMsgUnix(packet[:], oob[:])
	if err != nil {
		return "", nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return "", nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials, say
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			if f == nil {
				f = os.NewFile(uintptr(fd), "kept")
			} else {
				_ = unix.Close(fd)
			}
		}
	}
	if n == 0 || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		if f != nil {
			_ = f.Close()
		}
		return "", nil, errors.New("the connection ended, or a packet was too long")
	}
	return string(packet[:n]), f, nil
}

// connectLocked connects to the keeper, and starts one if nobody listens.
func (k *KeeperProcess) connectLocked() error {
	if k.conn != nil {
		return nil
	}
	addr := &net.UnixAddr{Name: k.socket, Net: "unixpacket"}
	conn, err := net.DialUnix("unixpacket", nil, addr)
	if err != nil {
		if err := k.start(); err != nil {
			return err
		}
		deadline := time.Now().Add(keeperTimeout)
		for conn, err = net.DialUnix("unixpacket", nil, addr); err != nil; conn, err = net.DialUnix("unixpacket", nil, addr) {
			if time.Now().After(deadline) {
				said, _ := os.ReadFile(k.log()) // there may be nothing
				return fmt.Errorf("the keeper does not start: %w %s", err, strings.TrimSpace(string(said)))
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	k.conn = conn
	return nil
}

// log is where a keeper says why it does not start.
func (k *KeeperProcess) log() string { return k.socket + ".log" }

// start starts a keeper in a session of its own, so that no signal of a terminal or to a group ends it.
func (k *KeeperProcess) start() error {
	args := append(append([]string(nil), k.helper...), "keeper", k.socket)
	if k.host != "" {
		args = append(args, k.host)
	}
	cmd := exec.Command(args[0], args[1:]...) // the operator's own binary
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	if log, err := os.OpenFile(k.log(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600); err == nil {
		cmd.Stderr = log
		defer func() { _ = log.Close() }()
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	go func() { _ = cmd.Wait() }() // so that it leaves no zombie; it ends with the keeper, which outlives this process
	return nil
}

// keeper is the other end.
type keeper struct {
	mu    sync.Mutex
	held  map[string]*os.File
	conns int
	ends  bool          // nobody is let in any more: what was kept now would be lost with this process
	idle  chan struct{} // a token when nothing is held and nobody is connected; capacity 1
}

// runKeeper holds descriptors until it holds none and nobody is connected.
func runKeeper(ctx context.Context, socket string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		return err
	}
	// Two that start at a time: the one that has the lock is the keeper.
	lock, err := os.OpenFile(socket+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	for deadline := time.Now().Add(keeperTimeout / 2); unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil; {
		if err := clock.Sleep(ctx, 10*time.Millisecond); err != nil || time.Now().After(deadline) { // one that ends is gone soon
			return storage.E("start", storage.KindConflict, "keeper "+socket, errors.New("another one runs"))
		}
	}
	_ = os.Remove(socket)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	k := &keeper{held: map[string]*os.File{}, idle: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	wg.Go(func() {
		for {
			select {
			case <-k.idle:
			case <-time.After(keeperTimeout): // also when nobody ever connects
			case <-ctx.Done():
				return
			}
			if k.mayEnd() {
				_ = l.Close()
				return
			}
		}
	})
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			break
		}
		if !k.enter() {
			_ = conn.Close() // it asks the next keeper
			continue
		}
		wg.Go(func() {
			defer k.leave()
			k.serve(conn)
		})
	}
	wg.Wait()
	return nil
}

// enter lets a connection in, unless the keeper ends.
func (k *keeper) enter() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.ends {
		k.conns++
	}
	return !k.ends
}

func (k *keeper) leave() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conns--; k.conns == 0 {
		select {
		case k.idle <- struct{}{}:
		default:
		}
	}
}

// mayEnd reports whether nothing is held and nobody is connected; then nobody comes in any more.
func (k *keeper) mayEnd() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ends = k.conns == 0 && len(k.held) == 0
	return k.ends
}

func (k *keeper) serve(conn *net.UnixConn) {
	defer func() { _ = conn.Close() }()
	for {
		text, f, err := receive(conn)
		if err != nil {
			return
		}
		answer, rights := k.do(text[0], text[1:], f)
		if _, _, err := conn.WriteMsgUnix([]byte(answer), rights, nil); err != nil {
			return
		}
	}
}

func (k *keeper) do(what byte, name string, f *os.File) (answer string, rights []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	held := k.held[name]
	switch {
	case what == keepRequest && f != nil && (held != nil || len(k.held) < maxKept):
		k.held[name] = f
	case what == keepRequest && f != nil:
		_ = f.Close()
		return "!it holds " + fmt.Sprint(maxKept) + " descriptors already", nil
	case what == getRequest:
		if held == nil {
			return keeperOK, nil
		}
		rights, err := rightsOf(held)
		if err != nil {
			return "!" + err.Error(), nil
		}
		return keeperOK, rights
	case what == forgetRequest:
		delete(k.held, name)
	default:
		return "!the keeper does not know this request", nil
	}
	if held != nil {
		_ = held.Close()
	}
	return keeperOK, nil
}
