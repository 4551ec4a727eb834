package attach

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
)

// The kernel's generic netlink family "nbd" (include/uapi/linux/nbd-netlink.h).
const (
	nbdFamily  = "nbd"
	nbdVersion = 1

	nbdCmdConnect     = 1
	nbdCmdDisconnect  = 2
	nbdCmdReconfigure = 3

	nbdAttrIndex       = 1
	nbdAttrSizeBytes   = 2
	nbdAttrBlockBytes  = 3
	nbdAttrServerFlags = 5
	nbdAttrClientFlags = 6
	nbdAttrSockets     = 7
	nbdAttrDeadTimeout = 8
	nbdAttrBackend     = 10
	nbdSockItem        = 1
	nbdSockFD          = 1

	nbdDisconnectOnClose = 1 << 1 // NBD_CFLAG_DISCONNECT_ON_CLOSE, a client flag
)

// nbdOrder is what the kernel is told of a device. Zero fields are left out, but in a connect order, which holds them all.
type nbdOrder struct {
	index       uint32 // not in a connect order: the kernel chooses
	hasIndex    bool
	sizeBytes   uint64
	blockBytes  uint64
	dead        time.Duration // whole seconds
	serverFlags uint64
	sockets     []uint32 // descriptors
	backend     string
	// hasClosing says that closing is to be set: whether the device goes when its last user closes it. Without it, that stays as it is.
	hasClosing, closing bool
}

// encode returns the order's attributes.
func (o *nbdOrder) encode() ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	if o.hasIndex {
		e.Uint32(nbdAttrIndex, o.index)
	}
	for _, a := range []struct {
		kind  uint16
		value uint64
	}{{nbdAttrSizeBytes, o.sizeBytes}, {nbdAttrBlockBytes, o.blockBytes},
		{nbdAttrServerFlags, o.serverFlags}, {nbdAttrDeadTimeout, uint64(o.dead / time.Second)}} {
		if a.value != 0 {
			e.Uint64(a.kind, a.value)
		}
	}
	if len(o.sockets) > 0 {
		e.Nested(nbdAttrSockets, func(list *netlink.AttributeEncoder) error {
			for _, fd := range o.sockets {
				list.Nested(nbdSockItem, func(item *netlink.AttributeEncoder) error {
					item.Uint32(nbdSockFD, fd)
					return nil
				})
			}
			return nil
		})
	}
	if o.hasClosing {
		var flags uint64
		if o.closing {
			flags = nbdDisconnectOnClose
		}
		e.Uint64(nbdAttrClientFlags, flags)
	}
	if o.backend != "" {
		e.String(nbdAttrBackend, o.backend)
	}
	return e.Encode()
}

// decodeIndex finds the index in the kernel's answer to a connect order.
func decodeIndex(data []byte) (uint32, error) {
	d, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return 0, err
	}
	for d.Next() {
		if d.Type() == nbdAttrIndex {
			index := d.Uint32()
			return index, d.Err()
		}
	}
	return 0, errors.Join(errors.New("the kernel does not say which device it has made"), d.Err())
}

// nbdKernel carries orders out. The kernel's is netlinkKernel.
type nbdKernel interface {
	available() error
	// do returns the index of the device that nbdCmdConnect has made; 0 for other commands.
	do(command uint8, o nbdOrder) (index uint32, err error)
}

// netlinkKernel is the kernel. Each call makes a connection of its own.
type netlinkKernel struct{}

const netlinkTimeout = 10 * time.Second

func (netlinkKernel) dial() (*genetlink.Conn, genetlink.Family, error) {
	c, err := genetlink.Dial(nil)
	if err != nil {
		return nil, genetlink.Family{}, err
	}
	family, err := c.GetFamily(nbdFamily)
	if errors.Is(err, os.ErrNotExist) {
		err = errors.New("the kernel has no nbd; as root: modprobe nbd")
	}
	if err == nil {
		err = c.SetDeadline(time.Now().Add(netlinkTimeout))
	}
	if err != nil {
		return nil, family, errors.Join(err, c.Close())
	}
	return c, family, nil
}

func (k netlinkKernel) available() error {
	c, _, err := k.dial()
	if err != nil {
		return err
	}
	return c.Close()
}

func (k netlinkKernel) do(command uint8, o nbdOrder) (index uint32, err error) {
	data, err := o.encode()
	if err != nil {
		return 0, err
	}
	c, family, err := k.dial()
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	flags := netlink.Request | netlink.Acknowledge
	if command == nbdCmdConnect {
		flags = netlink.Request // the answer is the index
	}
	answers, err := c.Execute(genetlink.Message{Header: genetlink.Header{Command: command, Version: nbdVersion}, Data: data}, family.ID, flags)
	switch {
	case err != nil:
		return 0, fmt.Errorf("nbd order %d: %w", command, err)
	case command != nbdCmdConnect:
		return 0, nil
	}
	for _, a := range answers {
		if len(a.Data) > 0 {
			return decodeIndex(a.Data)
		}
	}
	return decodeIndex(nil)
}
