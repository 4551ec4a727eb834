package nbdclient

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/internal/wire"
)

// maxListedExports bounds what a client takes from LIST.
const maxListedExports = 1 << 20

// clientHandshake is the client's side of the option haggling.
type handshake struct {
	nc       net.Conn
	in       *wire.Inbound
	cfg      Config
	features wire.Features
	info     nbd.ExportInfo
	flags    uint16
}

// negotiate does what there is to do on a connection to a server, and closes it when ctx ends before that.
func negotiate(ctx context.Context, nc net.Conn, cfg Config, do func(*handshake) error) (*handshake, error) {
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	h := &handshake{nc: nc, in: wire.NewInbound(nc), cfg: cfg}
	err := do(h)
	if !stop() {
		err = ctx.Err()
	}
	return h, err
}

// List returns the names of the exports of a server. Export and Contexts of cfg are not used.
func List(ctx context.Context, cfg Config) ([]string, error) {
	nc, err := cfg.dial(ctx)
	if err != nil {
		return nil, storage.E("dial", storage.KindUnavailable, "NBD server "+cfg.Address, err)
	}
	var names []string
	h, err := negotiate(ctx, nc, cfg, func(h *handshake) (err error) {
		names, err = h.list()
		return err
	})
	_ = h.nc.Close()
	return names, clientError("list", cfg.Address, err)
}

func (h *handshake) list() (names []string, err error) {
	if err := h.start(); err != nil {
		return nil, err
	}
	err = h.ask(protocol.NEGOTIATION_ID_OPTION_LIST, nil, func(kind uint32, data []byte) error {
		if kind != protocol.NEGOTIATION_TYPE_REPLY_SERVER || len(data) < 4 || len(names) >= maxListedExports {
			return fmt.Errorf("%w: reply %d to LIST", errProtocol, kind)
		}
		n := binary.BigEndian.Uint32(data)
		if data = data[4:]; n > wire.MaxStringBytes || n > uint32(len(data)) || bytes.IndexByte(data[:n], 0) >= 0 {
			return fmt.Errorf("%w: a name of %d bytes in reply to LIST", errProtocol, n)
		}
		names = append(names, string(data[:n]))
		return nil
	})
	if err == nil {
		_ = h.send(protocol.NEGOTIATION_ID_OPTION_ABORT, nil)
	}
	return names, err
}

// enter negotiates up to the transmission phase.
func (h *handshake) enter() error {
	if err := h.start(); err != nil {
		return err
	}
	var err error
	if !h.cfg.SimpleReplies {
		if !h.cfg.CompactHeaders {
			if h.features.Extended, err = h.try(wire.OptExtendedHeaders); err != nil {
				return err
			}
		}
		if !h.features.Extended {
			if h.features.Structured, err = h.try(wire.OptStructuredReply); err != nil {
				return err
			}
		}
	}
	if h.features.Chunked() && len(h.cfg.Contexts) > 0 {
		if err := h.selectContexts(); err != nil {
			return err
		}
	}
	return h.goTransmit()
}

// start exchanges flags and, if wanted, begins TLS.
func (h *handshake) start() error {
	b, err := h.in.Next(18)
	if err != nil {
		return wire.NoEOF(err)
	}
	var head protocol.NegotiationNewstyleHeader
	wire.DecodeStruct(b, &head)
	if head.OldstyleMagic != protocol.NEGOTIATION_MAGIC_OLDSTYLE || head.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION ||
		head.HandshakeFlags&protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE == 0 {
		return errors.New("this is no NBD server of the fixed newstyle")
	}
	flags := wire.ClientFlagFixedNewstyle
	if head.HandshakeFlags&wire.HandshakeFlagNoZeroes != 0 {
		flags |= wire.ClientFlagNoZeroes
	}
	if _, err := h.nc.Write(binary.BigEndian.AppendUint32(nil, flags)); err != nil {
		return err
	}
	if h.cfg.TLS == nil {
		return nil
	}
	if err := h.ask(wire.OptStartTLS, nil, nil); err != nil {
		return err
	}
	if h.in.Buffered() > 0 {
		return fmt.Errorf("%w: bytes before the TLS handshake", errProtocol)
	}
	t := tls.Client(h.nc, h.cfg.TLS)
	if err := t.Handshake(); err != nil {
		return err
	}
	h.nc, h.in.Src = t, t
	return nil
}

// send sends an option.
func (h *handshake) send(option uint32, data []byte) error {
	b := wire.AppendStruct(nil, protocol.NegotiationOptionHeader{OptionMagic: protocol.NEGOTIATION_MAGIC_OPTION, ID: option,
		Length: uint32(len(data))})
	_, err := h.nc.Write(append(b, data...))
	return err
}

// ask sends an option and reads its replies up to the ACK, or the error, that ends them.
func (h *handshake) ask(option uint32, data []byte, each func(kind uint32, data []byte) error) error {
	if err := h.send(option, data); err != nil {
		return err
	}
	for {
		kind, data, err := h.reply(option)
		switch {
		case err != nil:
			return err
		case kind == protocol.NEGOTIATION_TYPE_REPLY_ACK:
			return nil
		case kind&wire.RepErrBit != 0:
			return optionRefused(option, kind, string(data))
		case each == nil:
			return fmt.Errorf("%w: reply %d to option %d", errProtocol, kind, option)
		}
		if err := each(kind, data); err != nil {
			return err
		}
	}
}

func (h *handshake) reply(option uint32) (kind uint32, data []byte, err error) {
	b, err := h.in.Next(wire.OptionReplyBytes)
	if err != nil {
		return 0, nil, wire.NoEOF(err)
	}
	var head protocol.NegotiationReplyHeader
	wire.DecodeStruct(b, &head)
	if head.ReplyMagic != protocol.NEGOTIATION_MAGIC_REPLY || head.ID != option || head.Length > wire.MaxOptionBytes {
		return 0, nil, fmt.Errorf("%w: reply to option %d of %d bytes", errProtocol, head.ID, head.Length)
	}
	data = make([]byte, head.Length)
	return head.Type, data, h.in.Full(data)
}

// try asks for an option that the server need not know.
func (h *handshake) try(option uint32) (bool, error) {
	err := h.ask(option, nil, nil)
	var e *storage.Error
	if errors.As(err, &e) {
		return false, nil
	}
	return err == nil, err
}

func optionRefused(option, kind uint32, text string) error {
	k, ok := wire.KindOfOptionError[kind]
	if !ok {
		k = storage.KindUnsupported
	}
	if text == "" {
		text = k.String()
	}
	return storage.E("", k, "", fmt.Errorf("the server refuses option %d: %s", option, text))
}

func (h *handshake) selectContexts() error {
	data := wire.AppendString(nil, h.cfg.Export)
	data = binary.BigEndian.AppendUint32(data, uint32(len(h.cfg.Contexts)))
	for _, name := range h.cfg.Contexts {
		data = wire.AppendString(data, name)
	}
	err := h.ask(wire.OptSetMetaContext, data, func(kind uint32, data []byte) error {
		if kind != wire.RepMetaContext || len(data) < 4 || len(h.features.Contexts) >= len(h.cfg.Contexts) {
			return fmt.Errorf("%w: reply %d to SET_META_CONTEXT", errProtocol, kind)
		}
		h.features.Contexts = append(h.features.Contexts,
			wire.MetaContext{Id: binary.BigEndian.Uint32(data), Name: string(data[4:])})
		return nil
	})
	if storage.KindOf(err) == storage.KindUnsupported {
		h.features.Contexts = nil
		return nil
	}
	return err
}

func (h *handshake) goTransmit() error {
	data := wire.AppendString(nil, h.cfg.Export)
	wanted := []uint16{protocol.NEGOTIATION_TYPE_INFO_NAME, protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION,
		protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE}
	data = binary.BigEndian.AppendUint16(data, uint16(len(wanted)))
	for _, w := range wanted {
		data = binary.BigEndian.AppendUint16(data, w)
	}
	h.info.Name = h.cfg.Export
	described := false
	err := h.ask(protocol.NEGOTIATION_ID_OPTION_GO, data, func(kind uint32, data []byte) error {
		if kind != protocol.NEGOTIATION_TYPE_REPLY_INFO || len(data) < 2 {
			return fmt.Errorf("%w: reply %d to GO", errProtocol, kind)
		}
		if binary.BigEndian.Uint16(data) == protocol.NEGOTIATION_TYPE_INFO_EXPORT {
			described = true
		}
		return h.describe(data)
	})
	if err != nil {
		return err
	}
	if !described {
		return fmt.Errorf("%w: GO without the export's size", errProtocol)
	}
	h.info = h.info.WithDefaults(nbd.DefaultMaxPayloadBytes)
	h.info.ReadOnly = h.flags&wire.FlagReadOnly != 0
	h.info.MultiConn = h.flags&protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN != 0
	h.info.FastZero = h.flags&wire.FlagSendFastZero != 0
	h.info.Resizable = h.flags&wire.FlagSendResize != 0
	for _, mc := range h.features.Contexts {
		h.info.Contexts = append(h.info.Contexts, mc.Name)
	}
	return nil
}

// describe takes one INFO reply in.
func (h *handshake) describe(data []byte) error {
	switch binary.BigEndian.Uint16(data) {
	case protocol.NEGOTIATION_TYPE_INFO_EXPORT:
		if len(data) != 12 {
			return fmt.Errorf("%w: INFO_EXPORT of %d bytes", errProtocol, len(data))
		}
		var info protocol.NegotiationReplyInfo
		wire.DecodeStruct(data, &info)
		h.info.SizeBytes, h.flags = info.Size, info.TransmissionFlags
	case protocol.NEGOTIATION_TYPE_INFO_NAME:
		h.info.Name = string(data[2:])
	case protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION:
		h.info.Description = string(data[2:])
	case protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE:
		if len(data) != 14 {
			return fmt.Errorf("%w: INFO_BLOCK_SIZE of %d bytes", errProtocol, len(data))
		}
		var info protocol.NegotiationReplyBlockSize
		wire.DecodeStruct(data, &info)
		h.info.MinBlockBytes, h.info.PreferredBlockBytes = info.MinimumBlockSize, info.PreferredBlockSize
		h.info.MaxPayloadBytes = info.MaximumBlockSize
	}
	return nil
}

// ParseURI reads an NBD URI: nbd://host[:port]/export, nbds:// with TLS (the caller fills in the certificates),
// nbd+unix:///export?socket=path, nbds+unix://.
func ParseURI(uri string) (Config, error) {
	fail := func(err error) (Config, error) {
		return Config{}, storage.E("parse NBD URI", storage.KindInvalid, uri, err)
	}
	u, err := url.Parse(uri)
	if err != nil {
		return fail(err)
	}
	var cfg Config
	if len(u.Path) > 0 {
		cfg.Export = u.Path[1:]
	}
	switch u.Scheme {
	case "nbd", "nbds":
		port := u.Port()
		if port == "" {
			port = "10809"
		}
		if u.Hostname() == "" {
			return fail(errors.New("the host is missing"))
		}
		cfg.Network, cfg.Address = "tcp", net.JoinHostPort(u.Hostname(), port)
	case "nbd+unix", "nbds+unix":
		cfg.Network, cfg.Address = "unix", u.Query().Get("socket")
		if cfg.Address == "" {
			return fail(errors.New("the parameter socket is missing"))
		}
	default:
		return fail(errors.New("the scheme must be nbd, nbds, nbd+unix or nbds+unix"))
	}
	if u.Scheme == "nbds" || u.Scheme == "nbds+unix" {
		cfg.TLS = &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS12}
	}
	return cfg, nil
}
