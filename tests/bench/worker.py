"""A worker as Python developers write it: aio-pika and aiohttp on uvloop, without validation, ledger, metrics or retries.

worker.py AMQP_URL QUEUE POST_URL IN_FLIGHT PREFETCH
"""

import asyncio
import json
import sys

import aio_pika
import aiohttp
import uvloop

PREFIX = b'{"operation":"bench","module":"wolkvox_activities","type":"task","fields":'
HEADERS = {"wolkvox-token": "bench", "content-type": "application/json"}


async def main(amqp: str, queue_name: str, post: str, in_flight: int, prefetch: int) -> None:
    connection = await aio_pika.connect_robust(amqp)
    connector = aiohttp.TCPConnector(limit=in_flight)
    async with connection, aiohttp.ClientSession(connector=connector, headers=HEADERS) as session:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=prefetch)
        queue = await channel.get_queue(queue_name, ensure=False)
        places = asyncio.Semaphore(in_flight)

        async def process(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            async with places, session.post(post, data=PREFIX + message.body + b"}") as answer:
                verdict = json.loads(await answer.read())
            if verdict["code"] == "200":
                await message.ack()

        await queue.consume(process)
        await asyncio.Future()


uvloop.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
