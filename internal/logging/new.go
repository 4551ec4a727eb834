package logging

import (
	"fmt"
	"io"
	"log/slog"

	storage "github.com/storaged/storaged"
)

// New returns the logger that a program's flags ask for: --log-level as slog writes levels, --log-format text or json. It
// fails with KindInvalid, naming the flag.
func New(level, format string, w io.Writer) (*slog.Logger, error) {
	var least slog.Level
	if err := least.UnmarshalText([]byte(level)); err != nil {
		return nil, storage.E("configuration", storage.KindInvalid, "--log-level", err)
	}
	options := &slog.HandlerOptions{Level: least}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, storage.E("configuration", storage.KindInvalid, "--log-format", fmt.Errorf("%q: use text or json", format))
}
