package testcluster

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// ErrNoNamespaces says that this process may not make network namespaces, or that ip and nft are missing.
var ErrNoNamespaces = errors.New("testcluster: network namespaces cannot be had (they need root, ip and nft)")

// Network is a set of network namespaces on one bridge, one for each node, with switchable partitions. This
// process reaches every namespace through the bridge, whatever is cut between them. Packets that are cut are
// dropped silently. It is not used concurrently.
type Network struct {
	octet int // 10.77.octet.0/24; also in the names of this network's devices and namespaces
	nodes int
}

// NewNetwork makes the namespaces of nodes 0 to n-1. Close removes them.
func NewNetwork(n int) (*Network, error) {
	if os.Geteuid() != 0 || n < 1 || n > 200 {
		return nil, ErrNoNamespaces
	}
	for _, program := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoNamespaces, err)
		}
	}
	octet, err := claim(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoNamespaces, err)
	}
	net := &Network{octet: octet, nodes: n}
	if err := net.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrNoNamespaces, err), net.Close())
	}
	return net, nil
}

// octets bounds the networks of a machine that there can be at a time.
const octets = 250

// claim makes the bridge of a network that nobody has, and returns its octet: of several who try one at once the kernel lets one
// make a bridge of that name.
func claim(first int) (octet int, err error) {
	for i := range octets {
		octet = (first+i)%octets + 1
		if err = command("ip", "link", "add", (&Network{octet: octet}).bridge(), "type", "bridge"); err == nil {
			return octet, nil
		}
	}
	return 0, fmt.Errorf("none of %d networks is free; `ip link` shows bridges that tests which were killed have left: %w", octets, err)
}

func (net *Network) bridge() string          { return fmt.Sprintf("stbridge-%d", net.octet) }
func (net *Network) namespace(i int) string  { return fmt.Sprintf("storaged-%d-%d", net.octet, i+1) }
func (net *Network) outside(i int) string    { return fmt.Sprintf("stport-%d-%d", net.octet, i+1) }
func (net *Network) address(last int) string { return fmt.Sprintf("10.77.%d.%d", net.octet, last) }

// Host returns the address of node i; for Config.Host.
func (net *Network) Host(i int) string { return net.address(i + 1) }

// Prefix returns what runs a command as node i; for Config.Prefix.
func (net *Network) Prefix(i int) []string {
	return []string{"ip", "netns", "exec", net.namespace(i)}
}

func (net *Network) build() error {
	commands := [][]string{
		{"ip", "addr", "add", net.address(254) + "/24", "dev", net.bridge()},
		{"ip", "link", "set", net.bridge(), "up"},
	}
	for i := range net.nodes {
		ns, dev := net.namespace(i), net.outside(i)
		commands = append(commands,
			[]string{"ip", "netns", "add", ns},
			[]string{"ip", "link", "add", dev, "type", "veth", "peer", "name", "eth0", "netns", ns},
			[]string{"ip", "link", "set", dev, "master", net.bridge(), "up"},
			[]string{"ip", "-n", ns, "link", "set", "lo", "up"},
			[]string{"ip", "-n", ns, "addr", "add", net.Host(i) + "/24", "dev", "eth0"},
			[]string{"ip", "-n", ns, "link", "set", "eth0", "up"},
			net.in(i, "nft", "add table inet fault; add set inet fault from { type ipv4_addr; }; "+
				"add chain inet fault in { type filter hook input priority 0; }; add rule inet fault in ip saddr @from drop"))
	}
	for _, c := range commands {
		if err := command(c...); err != nil {
			return err
		}
	}
	return nil
}

// in returns a command that runs as node i.
func (net *Network) in(i int, args ...string) []string { return append(net.Prefix(i), args...) }

// OneWay loses what node from sends to node to; the other way packets pass.
func (net *Network) OneWay(from, to int) error {
	return command(net.in(to, "nft", "add element inet fault from { "+net.Host(from)+" }")...)
}

// Cut loses what two nodes send each other.
func (net *Network) Cut(a, b int) error {
	return errors.Join(net.OneWay(a, b), net.OneWay(b, a))
}

// Isolate cuts node a from all others.
func (net *Network) Isolate(a int) error {
	var err error
	for b := range net.nodes {
		if b != a {
			err = errors.Join(err, net.Cut(a, b))
		}
	}
	return err
}

// Heal lets everything pass again.
func (net *Network) Heal() error {
	var err error
	for i := range net.nodes {
		err = errors.Join(err, command(net.in(i, "nft", "flush set inet fault from")...))
	}
	return err
}

// Close removes the namespaces and the bridge, after the processes in them have ended. The kernel takes a namespace apart later, and
// with it the devices that lead there. They are removed first, so that the next network can use their names. The bridge goes last:
// whoever makes one of that name gets the network's number.
func (net *Network) Close() error {
	var err error
	for i := range net.nodes {
		if _, statErr := os.Stat("/sys/class/net/" + net.outside(i)); statErr == nil {
			err = errors.Join(err, command("ip", "link", "del", net.outside(i)))
		}
		if _, statErr := os.Stat("/run/netns/" + net.namespace(i)); statErr == nil {
			err = errors.Join(err, command("ip", "netns", "del", net.namespace(i)))
		}
	}
	if _, statErr := os.Stat("/sys/class/net/" + net.bridge()); statErr == nil {
		err = errors.Join(err, command("ip", "link", "del", net.bridge()))
	}
	return err
}

// command runs a program to its end.
func command(args ...string) error {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%q: %w: %s", args, err, bytes.TrimSpace(out))
	}
	return nil
}
