package notify

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// The headers of a webhook's request.
const (
	// SignatureHeader has t=UNIX-TIME,v1=HEX: HMAC-SHA-256 of the time in decimal, a
	// full stop and the body.
	SignatureHeader = "Pgsteer-Signature"
	// IDHeader has the message's id.
	IDHeader = "Pgsteer-Id"
)

// payloadVersion is that of the body's form.
const payloadVersion = 1

// Payload is the body that a webhook and a program get.
type Payload struct {
	Version int `json:"version"`
	Message
	Text string `json:"text"` // a line for each item
}

// payload writes a message as JSON.
func payload(m *Message) ([]byte, error) {
	p := Payload{Version: payloadVersion, Message: *m}
	for n, i := range m.Items {
		if n > 0 {
			p.Text += "\n"
		}
		p.Text += i.line(m.At)
	}
	body, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encoding the message: %w", err)
	}
	return body, nil
}

// webhook is a sink.
type webhook Webhook

func (w *webhook) deliver(ctx context.Context, m *Message) error {
	body, err := payload(m)
	if err != nil {
		return err
	}
	now := time.Now()
	h := http.Header{}
	h.Set(IDHeader, m.ID)
	if w.Key != nil {
		key, err := w.Key()
		if err != nil {
			return err
		}
		h.Set(SignatureHeader, sign(key, now, body))
	}
	p, err := newPoster(w.URL, w.Timeout)
	if err != nil {
		return err
	}
	return p.post(ctx, body, h, now)
}

// sign returns the value of SignatureHeader.
func sign(key Secret, now time.Time, body []byte) string {
	t := strconv.FormatInt(now.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(key.text))
	mac.Write([]byte(t + "."))
	mac.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}
