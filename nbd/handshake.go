package nbd

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"github.com/storaged/storaged/nbd/internal/wire"
)

const (
	// maxOptionSkipBytes bounds the data of an option that is skipped and answered with TOO_BIG; more ends the
	// connection.
	maxOptionSkipBytes = 1 << 20
	// maxOptions bounds the options of one handshake.
	maxOptions = 256
	// maxContexts bounds the metadata contexts that one connection selects.
	maxContexts = 16
	// replyShare is which part of the time for the handshake is left when the backend's is over, to say so.
	replyShare = 5
)

// handshake is the option haggling of one connection.
type handshake struct {
	c        *conn
	ctx      context.Context
	asking   context.Context // for the backend: ends before ctx, so that the client hears what it waited for
	out      []byte          // replies to the option being answered
	selected string          // the export that features.contexts were selected for
}

// optionReply is an error that is sent to the client, who may then try another option.
type optionReply struct {
	kind uint32
	text string
}

// Error implements error.
func (r *optionReply) Error() string { return r.text }

func rejectOption(kind uint32, format string, args ...any) error {
	return &optionReply{kind: kind, text: fmt.Sprintf(format, args...)}
}

// handshake negotiates until the client has chosen an export, which is then open. It returns errDisconnect when
// the client wants no export.
func (c *conn) handshake() error {
	timeout := c.srv.cfg.HandshakeTimeout
	ctx, cancel := context.WithTimeout(c.ctx, timeout)
	defer cancel()
	// A timer, not a deadline of the socket: drain uses that.
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			c.end(errStalled)
		}
	})
	defer stop() // if that is too late, the first read of a request says so
	asking, cancelAsking := context.WithTimeout(ctx, timeout-timeout/replyShare)
	defer cancelAsking()
	h := &handshake{c: c, ctx: ctx, asking: asking}
	if err := h.greet(); err != nil {
		return err
	}
	for range maxOptions {
		done, err := h.option()
		if err != nil {
			return err
		}
		if done {
			return nil
		}
	}
	return c.violation("more than %d options", maxOptions)
}

// greet exchanges the magic numbers and flags.
func (h *handshake) greet() error {
	h.out = wire.AppendStruct(h.out, protocol.NegotiationNewstyleHeader{
		OldstyleMagic:  protocol.NEGOTIATION_MAGIC_OLDSTYLE,
		OptionMagic:    protocol.NEGOTIATION_MAGIC_OPTION,
		HandshakeFlags: protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE | wire.HandshakeFlagNoZeroes,
	})
	if err := h.flush(); err != nil {
		return err
	}
	b, err := h.c.in.Next(4)
	if err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(b)
	if flags&^(wire.ClientFlagFixedNewstyle|wire.ClientFlagNoZeroes) != 0 {
		return h.c.violation("unknown client flags %#x", flags)
	}
	h.c.noZeroes = flags&wire.ClientFlagNoZeroes != 0
	return nil
}

// option answers one option and reports whether transmission begins.
func (h *handshake) option() (done bool, err error) {
	b, err := h.c.in.Next(wire.OptionHeaderBytes)
	if err != nil {
		return false, err
	}
	var head protocol.NegotiationOptionHeader
	wire.DecodeStruct(b, &head)
	if head.OptionMagic != protocol.NEGOTIATION_MAGIC_OPTION {
		return false, h.c.violation("wrong magic %#x of an option", head.OptionMagic)
	}
	data, err := h.optionData(head)
	if err == nil {
		done, err = h.answer(head.ID, data)
	}
	var reject *optionReply
	if errors.As(err, &reject) {
		if head.ID == wire.OptExportName {
			return false, h.c.violation("EXPORT_NAME: %s", reject.text) // it has no error reply
		}
		h.reply(head.ID, reject.kind, []byte(truncate(reject.text, wire.MaxMessageBytes)))
		err = nil
	}
	if err == nil {
		err = h.flush()
	}
	if err != nil && done { // the export is open, but the client will never know
		_ = h.c.export.Close(false)
	}
	return done, err
}

// optionData reads what belongs to an option, if it is of a reasonable length.
func (h *handshake) optionData(head protocol.NegotiationOptionHeader) ([]byte, error) {
	if head.Length > wire.MaxOptionBytes {
		if head.Length > maxOptionSkipBytes || head.ID == wire.OptExportName {
			return nil, h.c.violation("an option of %d bytes", head.Length)
		}
		if err := h.c.in.Discard(uint64(head.Length)); err != nil {
			return nil, err
		}
		return nil, rejectOption(wire.RepErrTooBig, "the option's data are longer than %d bytes", wire.MaxOptionBytes)
	}
	data := make([]byte, head.Length)
	return data, h.c.in.Full(data)
}

// answer dispatches an option.
func (h *handshake) answer(option uint32, data []byte) (done bool, err error) {
	if h.needsTLS() && option != wire.OptStartTLS && option != protocol.NEGOTIATION_ID_OPTION_ABORT {
		return false, rejectOption(wire.RepErrTLSReqd, "this server requires TLS")
	}
	switch option {
	case wire.OptExportName:
		err := h.exportName(string(data))
		return err == nil, err
	case protocol.NEGOTIATION_ID_OPTION_ABORT:
		h.reply(option, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil)
		_ = h.flush() // the client may be gone already
		return false, errDisconnect
	case protocol.NEGOTIATION_ID_OPTION_LIST:
		return false, h.list(data)
	case wire.OptStartTLS:
		return false, h.startTLS(data)
	case protocol.NEGOTIATION_ID_OPTION_INFO:
		return false, h.info(data)
	case protocol.NEGOTIATION_ID_OPTION_GO:
		err := h.goTransmit(data)
		return err == nil, err
	case wire.OptStructuredReply:
		return false, h.structuredReply(data)
	case wire.OptExtendedHeaders:
		return false, h.extendedHeaders(data)
	case wire.OptListMetaContext, wire.OptSetMetaContext:
		return false, h.metaContext(option, data)
	default:
		return false, rejectOption(wire.RepErrUnsup, "unknown option %d", option)
	}
}

// needsTLS reports whether the connection may do nothing before STARTTLS.
func (h *handshake) needsTLS() bool {
	_, secure := h.c.nc.(*tls.Conn)
	return h.c.srv.cfg.RequireTLS && !secure && !h.c.unix
}

// reply appends an option reply.
func (h *handshake) reply(option, kind uint32, data []byte) {
	h.out = wire.AppendStruct(h.out, protocol.NegotiationReplyHeader{ReplyMagic: protocol.NEGOTIATION_MAGIC_REPLY,
		ID: option, Type: kind, Length: uint32(len(data))})
	h.out = append(h.out, data...)
}

func (h *handshake) ack(option uint32) { h.reply(option, protocol.NEGOTIATION_TYPE_REPLY_ACK, nil) }

// flush sends the replies.
func (h *handshake) flush() error {
	_, err := h.c.nc.Write(h.out)
	h.out = h.out[:0]
	return err
}

// rejected turns an error of the backend into an option reply.
func (h *handshake) rejected(err error) error {
	return rejectOption(optionError(err), "%s", h.because(err).Error())
}

// because says of a backend that has run out of time that this is what happened.
func (h *handshake) because(err error) error {
	if h.ctx.Err() == nil && errors.Is(h.asking.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("the export was not ready in time, try again: %w", err)
	}
	return err
}

// list answers LIST. Only names are sent: what else the reply may carry confuses clients.
func (h *handshake) list(data []byte) error {
	const option = protocol.NEGOTIATION_ID_OPTION_LIST
	if len(data) != 0 {
		return rejectOption(wire.RepErrInvalid, "LIST has no data")
	}
	exports, err := h.c.srv.cfg.Backend.Exports(h.asking)
	if err != nil {
		return h.rejected(err)
	}
	for _, e := range exports {
		h.reply(option, protocol.NEGOTIATION_TYPE_REPLY_SERVER, wire.AppendString(nil, e.Name))
		if len(h.out) >= wire.MaxOptionBytes {
			if err := h.flush(); err != nil {
				return err
			}
		}
	}
	h.ack(option)
	return nil
}

// startTLS upgrades the connection and forgets what was negotiated without TLS.
func (h *handshake) startTLS(data []byte) error {
	_, secure := h.c.nc.(*tls.Conn)
	switch {
	case len(data) != 0:
		return rejectOption(wire.RepErrInvalid, "STARTTLS has no data")
	case secure:
		return rejectOption(wire.RepErrInvalid, "TLS is in use already")
	case h.c.srv.cfg.TLS == nil:
		return rejectOption(wire.RepErrPolicy, "this server has no certificate")
	case h.c.in.Buffered() > 0:
		// Sent before the answer: somebody may have put words into the client's mouth.
		return h.c.violation("bytes behind STARTTLS")
	}
	h.ack(wire.OptStartTLS)
	if err := h.flush(); err != nil {
		return err
	}
	t := tls.Server(h.c.raw, h.c.srv.cfg.TLS)
	if err := t.HandshakeContext(h.ctx); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	h.c.nc, h.c.in.Src = t, t
	h.c.features, h.selected = wire.Features{}, ""
	return nil
}

func (h *handshake) structuredReply(data []byte) error {
	switch {
	case len(data) != 0:
		return rejectOption(wire.RepErrInvalid, "STRUCTURED_REPLY has no data")
	case h.c.features.Extended:
		return rejectOption(wire.RepErrExtHdrReqd, "extended headers are in use already")
	}
	h.c.features.Structured = true
	h.ack(wire.OptStructuredReply)
	return nil
}

func (h *handshake) extendedHeaders(data []byte) error {
	switch {
	case len(data) != 0:
		return rejectOption(wire.RepErrInvalid, "EXTENDED_HEADERS has no data")
	case h.c.features.Extended:
		return rejectOption(wire.RepErrInvalid, "extended headers are in use already")
	}
	h.c.features.Extended = true
	h.ack(wire.OptExtendedHeaders)
	return nil
}

// exportName answers EXPORT_NAME, which has no error reply: the connection ends instead.
func (h *handshake) exportName(name string) error {
	if h.c.features.Extended {
		return h.c.violation("EXPORT_NAME with extended headers")
	}
	if err := checkName(name); err != nil {
		return err
	}
	if err := h.open(name); err != nil {
		return fmt.Errorf("export %q is not open, and EXPORT_NAME has no reply that says so: %w", name, h.because(err))
	}
	h.out = binary.BigEndian.AppendUint64(h.out, h.c.info.SizeBytes)
	h.out = binary.BigEndian.AppendUint16(h.out, h.c.info.transmissionFlags(h.c.features))
	if !h.c.noZeroes {
		h.out = append(h.out, make([]byte, wire.ExportNamePadding)...)
	}
	return nil
}

// open opens the export and settles what was negotiated for it.
func (h *handshake) open(name string) error {
	c := h.c
	export, err := c.srv.cfg.Backend.Open(h.asking, name, c.peer())
	if err != nil {
		return err
	}
	if err := h.ctx.Err(); err != nil { // too late
		_ = export.Close(false)
		return err
	}
	c.export = export
	c.negotiated() // before the client hears of it, whose next connection may come at once
	c.info = export.Info().WithDefaults(c.srv.cfg.MaxPayloadBytes)
	c.info.Name = cmp.Or(c.info.Name, name)
	c.sizeBytes.Store(c.info.SizeBytes)
	c.sparse, _ = export.(SparseReader)
	if c.resizer, _ = export.(Resizer); c.resizer == nil {
		c.info.Resizable = false
	}
	if h.selected != name {
		c.features.Contexts = nil // they were selected for another export
	}
	return nil
}

// info answers INFO: what GO would say, without opening the export.
func (h *handshake) info(data []byte) error {
	const option = protocol.NEGOTIATION_ID_OPTION_INFO
	name, wanted, err := parseInfoRequest(data)
	if err != nil {
		return err
	}
	info, err := h.c.srv.cfg.Backend.Stat(h.asking, name, h.c.peer())
	if err != nil {
		return h.rejected(err)
	}
	f := h.c.features
	if h.selected != name {
		f.Contexts = nil
	}
	info = info.WithDefaults(h.c.srv.cfg.MaxPayloadBytes)
	h.describe(option, info, info.transmissionFlags(f), wanted)
	h.ack(option)
	return nil
}

// goTransmit answers GO.
func (h *handshake) goTransmit(data []byte) error {
	const option = protocol.NEGOTIATION_ID_OPTION_GO
	name, wanted, err := parseInfoRequest(data)
	if err != nil {
		return err
	}
	if err := h.open(name); err != nil {
		return h.rejected(err)
	}
	h.describe(option, h.c.info, h.c.info.transmissionFlags(h.c.features), wanted)
	h.ack(option)
	return nil
}

// describe appends the INFO replies: size and block sizes always, names if wanted.
func (h *handshake) describe(option uint32, info ExportInfo, flags uint16, wanted []uint16) {
	const kind = protocol.NEGOTIATION_TYPE_REPLY_INFO
	h.reply(option, kind, wire.AppendStruct(nil, protocol.NegotiationReplyInfo{
		Type: protocol.NEGOTIATION_TYPE_INFO_EXPORT, Size: info.SizeBytes, TransmissionFlags: flags}))
	h.reply(option, kind, wire.AppendStruct(nil, protocol.NegotiationReplyBlockSize{
		Type: protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE, MinimumBlockSize: info.MinBlockBytes,
		PreferredBlockSize: info.PreferredBlockBytes, MaximumBlockSize: info.MaxPayloadBytes}))
	if slices.Contains(wanted, protocol.NEGOTIATION_TYPE_INFO_NAME) {
		b := wire.AppendStruct(nil, protocol.NegotiationReplyNameHeader{Type: protocol.NEGOTIATION_TYPE_INFO_NAME})
		h.reply(option, kind, append(b, truncate(info.Name, wire.MaxStringBytes)...))
	}
	if slices.Contains(wanted, protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION) && info.Description != "" {
		b := wire.AppendStruct(nil, protocol.NegotiationReplyDescriptionHeader{
			Type: protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION})
		h.reply(option, kind, append(b, truncate(info.Description, wire.MaxStringBytes)...))
	}
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (h *handshake) metaContext(option uint32, data []byte) error {
	set := option == wire.OptSetMetaContext
	if set {
		h.c.features.Contexts, h.selected = nil, "" // also when the option fails
	}
	if !h.c.features.Chunked() {
		return rejectOption(wire.RepErrInvalid, "metadata contexts need structured replies or extended headers")
	}
	name, queries, err := parseMetaRequest(data)
	if err != nil {
		return err
	}
	info, err := h.c.srv.cfg.Backend.Stat(h.asking, name, h.c.peer())
	if err != nil {
		return h.rejected(err)
	}
	found := matchContexts(info.Contexts, queries, set)
	if set {
		if len(found) > maxContexts {
			return rejectOption(wire.RepErrTooBig, "more than %d metadata contexts", maxContexts)
		}
		h.selected = name
	}
	for i, context := range found {
		id := uint32(0)
		if set {
			id = uint32(i + 1)
			h.c.features.Contexts = append(h.c.features.Contexts, wire.MetaContext{Id: id, Name: context})
		}
		h.reply(option, wire.RepMetaContext, append(binary.BigEndian.AppendUint32(nil, id), context...))
	}
	h.ack(option)
	return nil
}

// matchContexts returns those of the offered contexts that a query asks for, each once. "namespace:" stands for all
// of a namespace when listing, and so does no query at all; it selects nothing when setting.
func matchContexts(offered, queries []string, set bool) []string {
	if !set && len(queries) == 0 {
		return offered
	}
	var found []string
	for _, context := range offered {
		for _, q := range queries {
			if q == context || !set && strings.HasSuffix(q, ":") && strings.HasPrefix(context, q) {
				found = append(found, context)
				break
			}
		}
	}
	return found
}

var errShortOption = rejectOption(wire.RepErrInvalid, "the option's data are shorter than they say")

// optionReader takes an option's data apart, up to the first error.
type optionReader struct {
	b   []byte
	err error
}

// next takes the next n bytes; nil if there are fewer.
func (o *optionReader) next(n uint32) (b []byte) {
	switch {
	case o.err != nil:
	case uint64(n) > uint64(len(o.b)):
		o.err = errShortOption
	default:
		b, o.b = o.b[:n], o.b[n:]
	}
	return b
}

func (o *optionReader) uint16() (v uint16) {
	if b := o.next(2); b != nil {
		v = binary.BigEndian.Uint16(b)
	}
	return v
}

func (o *optionReader) uint32() (v uint32) {
	if b := o.next(4); b != nil {
		v = binary.BigEndian.Uint32(b)
	}
	return v
}

// string reads a length and so many bytes.
func (o *optionReader) string() string {
	s := string(o.next(o.uint32()))
	if o.err == nil {
		o.err = checkName(s)
	}
	return s
}

// parseInfoRequest reads the data of INFO and GO.
func parseInfoRequest(data []byte) (name string, wanted []uint16, err error) {
	o := optionReader{b: data}
	name = o.string()
	n := o.uint16()
	if o.err == nil && len(o.b) != 2*int(n) {
		o.err = rejectOption(wire.RepErrInvalid, "%d information requests in %d bytes", n, len(o.b))
	}
	for len(o.b) > 0 && o.err == nil {
		wanted = append(wanted, o.uint16())
	}
	return name, wanted, o.err
}

// parseMetaRequest reads the data of LIST_META_CONTEXT and SET_META_CONTEXT.
func parseMetaRequest(data []byte) (name string, queries []string, err error) {
	o := optionReader{b: data}
	name = o.string()
	for n := o.uint32(); n > 0 && o.err == nil; n-- {
		q := o.string()
		if o.err == nil && !strings.Contains(q, ":") {
			o.err = rejectOption(wire.RepErrInvalid, "a query without namespace")
		}
		queries = append(queries, q)
	}
	if o.err == nil && len(o.b) != 0 {
		o.err = rejectOption(wire.RepErrInvalid, "%d bytes too many", len(o.b))
	}
	return name, queries, o.err
}

// checkName holds a string against what the protocol allows.
func checkName(s string) error {
	if len(s) > wire.MaxStringBytes {
		return rejectOption(wire.RepErrTooBig, "a string of %d bytes", len(s))
	}
	if bytes.IndexByte([]byte(s), 0) >= 0 {
		return rejectOption(wire.RepErrInvalid, "a string with NUL")
	}
	return nil
}
