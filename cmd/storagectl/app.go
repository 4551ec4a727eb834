package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/client"
	"github.com/storaged/storaged/internal/clock"
	"github.com/storaged/storaged/internal/transfer"
)

// app is one run of the command: all it touches besides its arguments. It is used by one goroutine, but for the streams,
// which progress reports share under their own lock.
type app struct {
	in       io.Reader
	out, err io.Writer
	// inTerminal, outTerminal and errTerminal: a person types there, a person looks there.
	inTerminal, outTerminal, errTerminal bool
	getenv                               func(string) string
	now                                  func() time.Time
	// sleep waits, and ends with ctx.
	sleep func(ctx context.Context, d time.Duration) error
	// dial connects to an API endpoint; nil: TCP.
	dial func(ctx context.Context, address string) (net.Conn, error)
	// open connects to an export.
	open func(ctx context.Context, t transfer.Target) (transfer.Content, error)

	flags    globalFlags
	settings settings // from flags, environment and file; set before a command runs
	api      *client.Client
	failed   *cobra.Command // the command whose arguments were wrong
}

func newApp(stdin io.Reader, stdout, stderr io.Writer) *app {
	return &app{in: stdin, out: stdout, err: stderr, inTerminal: isTerminal(stdin), outTerminal: isTerminal(stdout), errTerminal: isTerminal(stderr),
		getenv: os.Getenv, now: time.Now, sleep: clock.Sleep, open: transfer.Dial}
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// run carries one command line out and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	out := &keptError{Writer: a.out}
	a.out = out
	root := newRoot(a)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if out.err != nil && (err == nil || errors.Is(err, out.err)) {
		err = transfer.LocalError("write", transfer.Output, out.err)
	}
	defer func() {
		if a.api != nil {
			_ = a.api.Close() // nothing is under way any more
		}
	}()
	if err != nil {
		if ctx.Err() != nil { // whatever failed then failed because it was interrupted
			left, _ := errors.AsType[interrupted](err)
			err = storage.E("", storage.KindCanceled, "", left)
		}
		a.report(ctx, err)
	}
	return exitCode(err)
}

// interrupted is what a person who pressed Ctrl-C is told.
type interrupted struct {
	leaves string // the state that the command leaves behind, and the next step; empty: nothing to say
}

// Error implements error.
func (e interrupted) Error() string {
	if e.leaves == "" {
		return "interrupted"
	}
	return "interrupted; " + e.leaves
}

// client returns the connection to the cluster; it is made at the first call.
func (a *app) client() (*client.Client, error) {
	if a.api != nil {
		return a.api, nil
	}
	tlsConfig, err := a.settings.TLS.Config()
	if err != nil {
		return nil, err
	}
	c, err := client.New(client.Config{Endpoints: a.settings.Endpoints, Cluster: a.settings.Cluster, TLS: tlsConfig, Patience: a.settings.Timeout,
		AttemptTimeout: max(a.settings.Timeout/3, time.Second), Dial: a.dial})
	if err != nil {
		return nil, err
	}
	a.api = c
	return c, nil
}

// asks is what a command does that asks the cluster for one answer and shows it: as view, or as people write it.
func asks[A, V any](a *app, ask func(ctx context.Context, c *client.Client, args []string) (A, error), view func(A) V,
	write func(w io.Writer, answer A, wide bool)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		answer, err := ask(cmd.Context(), c, args)
		if err != nil {
			return err
		}
		return a.show(view(answer), func(w io.Writer, wide bool) { write(w, answer, wide) })
	}
}

// openVolume connects to the volume's export: at the address that was given, or at the node that answers for the
// cluster, or at another one that is up. The volume must exist.
func (a *app) openVolume(ctx context.Context, volume string, connections int) (transfer.Content, error) {
	t := transfer.Target{Volume: volume, Connections: max(connections, 1)}
	if a.settings.NBDTLS {
		var err error
		if t.TLS, err = a.settings.TLS.Config(); err != nil {
			return nil, err
		}
		if t.TLS == nil {
			t.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		}
	}
	addresses := []string{a.settings.NBD}
	if a.settings.NBD == "" {
		var err error
		if addresses, err = a.nbdAddresses(ctx, volume); err != nil {
			return nil, err
		}
	}
	var problems []string
	for _, address := range addresses {
		t.Address = address
		d, err := a.open(ctx, t)
		if err == nil {
			return d, nil
		}
		if ctx.Err() != nil || storage.KindOf(err) != storage.KindUnavailable {
			return nil, err
		}
		problems = append(problems, address+": "+storage.Cause(err).Error())
	}
	return nil, storage.E("connect to", storage.KindUnavailable, "volume "+volume,
		errors.New("no NBD server answers: "+strings.Join(problems, "; ")))
}

// nbdAddresses lists where the volume is exported, the node that answers first.
func (a *app) nbdAddresses(ctx context.Context, volume string) ([]string, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	if _, err := c.Volume(ctx, volume); err != nil {
		return nil, err
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	status, err := c.Status(ctx)
	if err != nil {
		return nil, err
	}
	var first, others []string
	for _, n := range nodes {
		address := n.Addrs.NBD
		if address == "" {
			continue
		}
		if n.ID == status.AnsweredBy {
			first = append(first, reachable(address, c.Endpoint()))
		} else if n.State == storage.NodeUp {
			others = append(others, address)
		}
	}
	if all := append(first, others...); len(all) > 0 {
		return all, nil
	}
	return nil, storage.E("find NBD server", storage.KindUnavailable, "",
		errors.New("no node that is up says where it serves NBD; name one with --nbd HOST:PORT"))
}

// reachable puts the host through which a node was reached in the place of one that only the node itself can use.
func reachable(address, endpoint string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(host); host != "" && (ip == nil || !ip.IsUnspecified()) {
		return address
	}
	if via, _, err := net.SplitHostPort(endpoint); err == nil {
		return net.JoinHostPort(via, port)
	}
	return address
}
