package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	storage "github.com/storaged/storaged"
)

// maxListedExports bounds what a client takes from LIST.
const maxListedExports = 1 << 20

// clientHandshake is the client's side of the option haggling.
type clientHandshake struct {
	nc       net.Conn
	in       *inbound
	cfg      ClientConfig
	features features
	info     ExportInfo
	flags    uint16
}

// List returns the names of the exports of a server. Export and Contexts of cfg are not used.
func List(ctx context.Context, cfg ClientConfig) ([]string, error) {
	nc, err := cfg.dial(ctx)
	if err != nil {
		return nil, storage.E("dial", storage.KindUnavailable, "NBD server "+cfg.Address, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()
	h := &clientHandshake{nc: nc, in: newInbound(nc), cfg: cfg}
	defer func() { _ = h.nc.Close() }()
	names, err := h.list()
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, clientError("list", cfg.Address, err)
	}
	return names, nil
}

func (h *clientHandshake) list() (names []string, err error) {
	if err := h.start(); err != nil {
		return nil, err
	}
	err = h.ask(protocol.NEGOTIATION_ID_OPTION_LIST, nil, func(kind uint32, data []byte) error {
		o := optionReader{data}
		name, err := o.string()
		if kind != protocol.NEGOTIATION_TYPE_REPLY_SERVER || err != nil || len(names) >= maxListedExports {
			return fmt.Errorf("%w: reply %d to LIST", errProtocol, kind)
		}
		names = append(names, name)
		return nil
	})
	if err == nil {
		_ = h.send(protocol.NEGOTIATION_ID_OPTION_ABORT, nil)
	}
	return names, err
}

// enter negotiates up to the transmission phase.
func (h *clientHandshake) enter() error {
	if err := h.start(); err != nil {
		return err
	}
	var err error
	if !h.cfg.SimpleReplies {
		if !h.cfg.CompactHeaders {
			if h.features.extended, err = h.try(optExtendedHeaders); err != nil {
				return err
			}
		}
		if !h.features.extended {
			if h.features.structured, err = h.try(optStructuredReply); err != nil {
				return err
			}
		}
	}
	if h.features.chunked() && len(h.cfg.Contexts) > 0 {
		if err := h.selectContexts(); err != nil {
			return err
		}
	}
	return h.goTransmit()
}

// start exchanges flags and, if wanted, begins TLS.
func (h *clientHandshake) start() error {
	b, err := h.in.next(18)
	if err != nil {
		return noEOF(err)
	}
	var head protocol.NegotiationNewstyleHeader
	decodeStruct(b, &head)
	if head.OldstyleMagic != protocol.NEGOTIATION_MAGIC_OLDSTYLE || head.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION ||
		head.HandshakeFlags&protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE == 0 {
		return errors.New("this is no NBD server of the fixed newstyle")
	}
	flags := clientFlagFixedNewstyle
	if head.HandshakeFlags&handshakeFlagNoZeroes != 0 {
		flags |= clientFlagNoZeroes
	}
	if _, err := h.nc.Write(binary.BigEndian.AppendUint32(nil, flags)); err != nil {
		return err
	}
	if h.cfg.TLS == nil {
		return nil
	}
	if err := h.ask(optStartTLS, nil, nil); err != nil {
		return err
	}
	if h.in.buffered() > 0 {
		return fmt.Errorf("%w: bytes before the TLS handshake", errProtocol)
	}
	t := tls.Client(h.nc, h.cfg.TLS)
	if err := t.Handshake(); err != nil {
		return err
	}
	h.nc, h.in.src = t, t
	return nil
}

// send sends an option.
func (h *clientHandshake) send(option uint32, data []byte) error {
	b := appendStruct(nil, protocol.NegotiationOptionHeader{OptionMagic: protocol.NEGOTIATION_MAGIC_OPTION, ID: option,
		Length: uint32(len(data))})
	_, err := h.nc.Write(append(b, data...))
	return err
}

// ask sends an option and reads its replies up to the ACK, or the error, that ends them.
func (h *clientHandshake) ask(option uint32, data []byte, each func(kind uint32, data []byte) error) error {
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
		case kind&repErrBit != 0:
			return optionRefused(option, kind, string(data))
		case each == nil:
			return fmt.Errorf("%w: reply %d to option %d", errProtocol, kind, option)
		}
		if err := each(kind, data); err != nil {
			return err
		}
	}
}

func (h *clientHandshake) reply(option uint32) (kind uint32, data []byte, err error) {
	b, err := h.in.next(optionReplyBytes)
	if err != nil {
		return 0, nil, noEOF(err)
	}
	var head protocol.NegotiationReplyHeader
	decodeStruct(b, &head)
	if head.ReplyMagic != protocol.NEGOTIATION_MAGIC_REPLY || head.ID != option || head.Length > maxOptionBytes {
		return 0, nil, fmt.Errorf("%w: reply to option %d of %d bytes", errProtocol, head.ID, head.Length)
	}
	data = make([]byte, head.Length)
	return head.Type, data, h.in.full(data)
}

// try asks for an option that the server need not know.
func (h *clientHandshake) try(option uint32) (bool, error) {
	err := h.ask(option, nil, nil)
	var e *storage.Error
	if errors.As(err, &e) {
		return false, nil
	}
	return err == nil, err
}

// kindOfOptionError is what option errors stand for.
var kindOfOptionError = map[uint32]storage.Kind{
	repErrUnsup: storage.KindUnsupported, repErrPolicy: storage.KindPermission, repErrInvalid: storage.KindInvalid,
	repErrTLSReqd: storage.KindPermission, repErrUnknown: storage.KindNotFound, repErrShutdown: storage.KindUnavailable,
	repErrTooBig: storage.KindInvalid, repErrExtHdrReqd: storage.KindUnsupported,
}

func optionRefused(option, kind uint32, text string) error {
	k, ok := kindOfOptionError[kind]
	if !ok {
		k = storage.KindUnsupported
	}
	if text == "" {
		text = k.String()
	}
	return storage.E("", k, "", fmt.Errorf("the server refuses option %d: %s", option, text))
}

func (h *clientHandshake) selectContexts() error {
	data := appendString(nil, h.cfg.Export)
	data = binary.BigEndian.AppendUint32(data, uint32(len(h.cfg.Contexts)))
	for _, name := range h.cfg.Contexts {
		data = appendString(data, name)
	}
	err := h.ask(optSetMetaContext, data, func(kind uint32, data []byte) error {
		if kind != repMetaContext || len(data) < 4 || len(h.features.contexts) >= len(h.cfg.Contexts) {
			return fmt.Errorf("%w: reply %d to SET_META_CONTEXT", errProtocol, kind)
		}
		h.features.contexts = append(h.features.contexts,
			metaContext{id: binary.BigEndian.Uint32(data), name: string(data[4:])})
		return nil
	})
	if storage.KindOf(err) == storage.KindUnsupported {
		h.features.contexts = nil
		return nil
	}
	return err
}

func (h *clientHandshake) goTransmit() error {
	data := appendString(nil, h.cfg.Export)
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
	h.info = h.info.withDefaults(DefaultMaxPayloadBytes)
	h.info.ReadOnly = h.flags&flagReadOnly != 0
	h.info.MultiConn = h.flags&protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN != 0
	h.info.FastZero = h.flags&flagSendFastZero != 0
	h.info.Resizable = h.flags&flagSendResize != 0
	for _, mc := range h.features.contexts {
		h.info.Contexts = append(h.info.Contexts, mc.name)
	}
	return nil
}

// describe takes one INFO reply in.
func (h *clientHandshake) describe(data []byte) error {
	switch binary.BigEndian.Uint16(data) {
	case protocol.NEGOTIATION_TYPE_INFO_EXPORT:
		if len(data) != 12 {
			return fmt.Errorf("%w: INFO_EXPORT of %d bytes", errProtocol, len(data))
		}
		var info protocol.NegotiationReplyInfo
		decodeStruct(data, &info)
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
		decodeStruct(data, &info)
		h.info.MinBlockBytes, h.info.PreferredBlockBytes = info.MinimumBlockSize, info.PreferredBlockSize
		h.info.MaxPayloadBytes = info.MaximumBlockSize
	}
	return nil
}

// ParseURI reads an NBD URI: nbd://host[:port]/export, nbds:// with TLS (the caller fills in the certificates),
// nbd+unix:///export?socket=path, nbds+unix://.
func ParseURI(uri string) (ClientConfig, error) {
	fail := func(err error) (ClientConfig, error) {
		return ClientConfig{}, storage.E("parse NBD URI", storage.KindInvalid, uri, err)
	}
	u, err := url.Parse(uri)
	if err != nil {
		return fail(err)
	}
	var cfg ClientConfig
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
