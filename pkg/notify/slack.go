package notify

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

const (
	// maxLines bounds the items that are shown one by one. A message has 50 blocks
	// at the most, and nobody reads more than a screenful.
	maxLines = 20
	// maxSection is the limit of a section's text, 3000 characters; some are spent
	// on escapes.
	maxSection = 2900
)

// slackColours are of the stripe beside a message.
var slackColours = map[Severity]string{Good: "#2eb67d", Notice: "#36c5f0", Warning: "#ecb22e", Critical: "#e01e5a"}

// slackMarks are for those who do not see colours, and for the list of messages.
var slackMarks = map[Severity]string{
	Good: ":white_check_mark:", Notice: ":arrow_right:", Warning: ":warning:", Critical: ":rotating_light:",
}

// slack is a sink.
type slack Slack

func (s *slack) deliver(ctx context.Context, m *Message) error {
	body, err := json.Marshal(slackMessage(m))
	if err != nil {
		return fmt.Errorf("encoding the message: %w", err)
	}
	p, err := newPoster(s.URL, s.Timeout)
	if err != nil {
		return err
	}
	return p.post(ctx, body, nil, time.Now())
}

// The parts of a message, as Slack names them.
type (
	slackText struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	slackBlock struct {
		Type     string      `json:"type"`
		Text     *slackText  `json:"text,omitempty"`
		Elements []slackText `json:"elements,omitempty"`
	}
	slackAttachment struct {
		Color    string       `json:"color"`
		Fallback string       `json:"fallback"`
		Blocks   []slackBlock `json:"blocks"`
	}
	slackPayload struct {
		Text        string            `json:"text"` // what a telephone shows
		Attachments []slackAttachment `json:"attachments"`
	}
)

// slackMessage puts a message into blocks; the colour is an attachment's.
func slackMessage(m *Message) slackPayload {
	head := slackEscape(m.Items[0].Title)
	if n := len(m.Items) - 1; n > 0 {
		head += fmt.Sprintf(" (and %d more)", n)
	}
	head = fmt.Sprintf("%s %s: %s", slackMarks[m.Severity], slackEscape(m.Node), head)
	a := slackAttachment{Color: slackColours[m.Severity], Fallback: head}
	for i, item := range m.Items {
		if i == maxLines {
			a.Blocks = append(a.Blocks, slackSection(fmt.Sprintf("_and %d more_", len(m.Items)-maxLines)))
			break
		}
		text := fmt.Sprintf("%s *%s*", slackMarks[item.Severity], slackEscape(item.Title))
		if item.Again {
			text = fmt.Sprintf("%s Still: *%s*", slackMarks[item.Severity], slackEscape(item.Title))
		}
		if item.Reason != "" {
			text += "\n" + slackEscape(item.Reason)
		}
		a.Blocks = append(a.Blocks, slackSection(text+"\n_"+slackEscape(item.when(m.At))+"_"))
	}
	foot := "said by " + slackEscape(m.Node)
	if m.Link != "" {
		foot += fmt.Sprintf(" · <%s|stats page>", slackEscape(m.Link))
	}
	a.Blocks = append(a.Blocks, slackBlock{Type: "context", Elements: []slackText{{"mrkdwn", foot}}})
	return slackPayload{Text: head, Attachments: []slackAttachment{a}}
}

func slackSection(text string) slackBlock {
	if len(text) > maxSection {
		text = strings.ToValidUTF8(text[:maxSection], "") + "…"
	}
	return slackBlock{Type: "section", Text: &slackText{"mrkdwn", text}}
}

// slackEscape has text mention nobody and link to nothing: it may be a server's.
func slackEscape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(s)
}
